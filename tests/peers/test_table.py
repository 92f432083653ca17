"""Tests of the table: `python3 -m unittest discover -s tests/peers`."""
import tempfile
import unittest
from pathlib import Path

from bench import chosen
from peers import all_peers
from table import BEGIN, END, System, as_json, markdown, put_between_markers, ratio


def systems() -> list[System]:
    ours = System("stepfleet", "kept", "all")
    ours.rounds["no"] = [{"jobs.steps_per_s": value, "idle.jobs.end_ms.p50": 0.5} for value in (100.0, 300.0, 200.0)]
    slower = System("slower", "lost", "few")
    slower.rounds["no"] = [{"jobs.steps_per_s": 50.0, "idle.jobs.end_ms.p50": 0.25}]
    return [ours, slower, System("missing", "?", "?", reason="there is no `npm`")]


class Table(unittest.TestCase):
    def test_medians_and_ratios_are_shown_and_who_wins_against_us_is_marked(self) -> None:
        text = markdown(systems(), ["no"], "redis", "today")
        self.assertIn("medians of 3 rounds", text)
        self.assertIn("| 200 | 50 (4.0x) |", text)
        self.assertIn("| 0.5 | 0.25 (**0.50x**) |", text)

    def test_a_peer_that_was_not_run_is_told_with_its_reason(self) -> None:
        text = markdown(systems(), ["no"], "redis", "today")
        self.assertIn("**NOT RUN**: there is no `npm`", text)
        self.assertEqual(as_json(systems(), ["no"], "r", "t")["systems"]["missing"]["not_run"], "there is no `npm`")

    def test_what_did_not_come_through_is_told_beside_the_figures(self) -> None:
        all_systems = systems()
        all_systems[1].problems.append("append-only file no: only 0 of 50 fanouts were done within 90 s")
        text = markdown(all_systems, ["no"], "redis", "today")
        self.assertIn("**FAILED**: append-only file no: only 0 of 50 fanouts", text)
        self.assertIn("50 (4.0x)", text)

    def test_a_ratio_says_how_many_times_better_ours_is(self) -> None:
        self.assertEqual(ratio(10, 5, True), 2)
        self.assertEqual(ratio(10, 5, False), 0.5)
        self.assertIsNone(ratio(None, 5, True))

    def test_the_text_between_the_markers_is_replaced_and_nothing_else(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            document = Path(folder) / "a.md"
            document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
            put_between_markers(document, "new")
            self.assertEqual(document.read_text(), f"before\n{BEGIN}\nnew\n{END}\nafter\n")
            document.write_text("no markers")
            self.assertRaises(ValueError, put_between_markers, document, "new")

    def test_peers_are_picked_by_name_and_an_unknown_name_is_told(self) -> None:
        peers = all_peers(Path("x"))
        self.assertEqual([peer.name for peer in chosen(peers, "celery, apalis")], ["apalis", "celery"])
        self.assertEqual(chosen(peers, ""), peers)
        self.assertRaises(SystemExit, chosen, peers, "bulmq")


if __name__ == "__main__":
    unittest.main()
