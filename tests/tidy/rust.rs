//! Rules about Rust code.

use crate::project::Source;

/// More lines than this need a reason in the header: `// LENGTH: why`.
const LINES_WITHOUT_REASON: usize = 400;
/// More lines than this are refused.
const LINES_MAX: usize = 600;
/// Within how many first lines the reason must stand.
const HEADER_LINES: usize = 40;

/// What a part of the project must not mention, outside its tests.
struct Layer {
    /// The part: every path that starts with this.
    part: &'static str,
    /// Unless it starts with one of these.
    except: &'static [&'static str],
    forbidden: &'static [&'static str],
    why: &'static str,
}

const LAYERS: &[Layer] = &[
    Layer {
        part: "coordinator/src/machine",
        except: &[],
        forbidden: &[
            "redis",
            "deadpool_redis",
            "tokio",
            "futures",
            "tracing",
            "rand",
            "reqwest",
            "axum",
            "SystemTime",
            "Instant",
            "now_v7",
            "new_v4",
            "std::fs",
            "std::env",
            "std::net",
            "std::thread",
            "println!",
            "eprintln!",
            "crate::store",
            "crate::shell",
            "crate::http",
        ],
        why: "the machine decides; it knows no Redis, clock, randomness, log line or outer layer",
    },
    Layer {
        part: "coordinator/src/store",
        except: &[],
        forbidden: &["crate::shell", "crate::http", "SystemTime"],
        why: "the store remembers; it knows no outer layer and no clock of its host",
    },
    Layer {
        part: "coordinator/src/shell",
        except: &[],
        forbidden: &["crate::http"],
        why: "the shell does not know the API",
    },
    Layer {
        part: "coordinator/src/",
        except: &["coordinator/src/store", "coordinator/src/shell"],
        forbidden: &["redis", "deadpool_redis"],
        why: "the store is the only user of Redis in the coordinator",
    },
    Layer {
        part: "coordinator/src/shell",
        except: &[],
        forbidden: &["redis::aio", "redis::Client", "redis::cluster", "deadpool_redis", "stepfleet_connect"],
        why: "the shell may build commands for a link of the store, but opens no connection of its own",
    },
    Layer {
        part: "coordinator/src/",
        except: &[],
        forbidden: &["stepfleet_worker"],
        why: "coordinator and worker meet only in the protocol",
    },
    Layer {
        part: "worker/src/",
        except: &[],
        forbidden: &["stepfleet_coordinator"],
        why: "coordinator and worker meet only in the protocol",
    },
    Layer {
        part: "protocol/src/",
        except: &[],
        forbidden: &["redis", "deadpool_redis", "tokio", "std::fs", "std::net", "stepfleet_connect"],
        why: "the protocol does no I/O",
    },
];

/// What no code may contain, tests included.
const LEFT_UNDONE: [(&str, &str); 5] = [
    ("thread::sleep", "wait for a condition"),
    ("todo!", "finish it"),
    ("unimplemented!", "finish it"),
    ("dbg!", "take it out"),
    ("#[ignore", "a test that is not run is no test; a missing tool is an error that says how to get it"),
];

/// A layer that mentions what it must not know.
pub(crate) fn layers(source: &Source) -> Vec<String> {
    let mut problems = Vec::new();
    let concerned = |layer: &&Layer| {
        source.is_rust()
            && source.path.starts_with(layer.part)
            && !layer.except.iter().any(|except| source.path.starts_with(except))
    };
    for layer in LAYERS.iter().filter(concerned) {
        for (number, line) in source.product_code() {
            for word in layer.forbidden.iter().filter(|word| mentions(line, word)) {
                problems.push(format!("{}:{number} mentions `{word}`: {}", source.path, layer.why));
            }
        }
    }
    problems
}

/// A file that is too long, or does not open with its subject.
pub(crate) fn shape(source: &Source) -> Vec<String> {
    let mut problems = Vec::new();
    if !source.is_rust() {
        return problems;
    }
    let lines = source.text.lines().count();
    let has_reason = source
        .text
        .lines()
        .take(HEADER_LINES)
        .filter_map(|line| line.strip_prefix("// LENGTH:"))
        .any(|reason| !reason.trim().is_empty());
    if lines > LINES_MAX {
        problems.push(format!("{} has {lines} lines; at most {LINES_MAX} are allowed", source.path));
    } else if lines > LINES_WITHOUT_REASON && !has_reason {
        problems.push(format!(
            "{} has {lines} lines; more than {LINES_WITHOUT_REASON} need a line `// LENGTH: why` in the header",
            source.path
        ));
    }
    if !source.text.starts_with("//!") {
        problems.push(format!("{} does not open with `//!` and what it owns", source.path));
    }
    problems
}

/// A Redis key that is spelled out where keys are not built.
pub(crate) fn key_literals(source: &Source) -> Vec<String> {
    let concerned = source.is_rust() || source.path.ends_with(".lua");
    if !concerned || source.path == "protocol/src/keys.rs" {
        return Vec::new();
    }
    let spelled = |line: &str| {
        line.match_indices("sf:")
            .any(|(at, found)| !line[..at].ends_with(is_identifier) && !line[at + found.len()..].starts_with(':'))
    };
    source
        .product_code()
        .filter(|(_, line)| spelled(line))
        .map(|(number, _)| format!("{}:{number} spells a key; keys are built in protocol/src/keys.rs", source.path))
        .collect()
}

/// A sleep, a gap or a test that is skipped.
pub(crate) fn left_undone(source: &Source) -> Vec<String> {
    let mut problems = Vec::new();
    if !source.is_rust() || source.is_rule() {
        return problems;
    }
    for (number, line) in source.code() {
        for (word, advice) in LEFT_UNDONE.iter().filter(|(word, _)| mentions(line, word)) {
            problems.push(format!("{}:{number} contains `{word}`: {advice}", source.path));
        }
    }
    problems
}

/// Whether a line uses a word: as the start of a path or call if it is a crate (`tokio::`, `use tokio`), as a whole word
/// otherwise. A crate's name inside text does not count.
fn mentions(line: &str, word: &str) -> bool {
    let is_crate =
        word.chars().all(|c| c.is_ascii_lowercase() || c == '_') && !word.starts_with("now") && word != "new_v4";
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + word.len()..]);
        let whole = !before.ends_with(is_identifier) && !after.starts_with(is_identifier);
        let imported = before.trim_end().ends_with("use") || before.trim_end().ends_with("crate");
        whole && (!is_crate || after.starts_with("::") || imported)
    })
}

fn is_identifier(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(rule: fn(&Source) -> Vec<String>, path: &str, text: &str) -> usize {
        rule(&Source::new(path, text)).len()
    }

    #[test]
    fn a_machine_with_a_clock_or_redis_is_found() {
        let path = "coordinator/src/machine/decide.rs";
        assert_eq!(problems(layers, path, "let now = std::time::SystemTime::now();"), 1);
        assert_eq!(problems(layers, path, "use std::time::{Duration, Instant};"), 1);
        // Redis is forbidden twice there: for the machine and for all but the store.
        assert_eq!(problems(layers, path, "use redis::Client;"), 2);
        assert_eq!(problems(layers, path, "use crate::store::Commit;"), 1);
        assert_eq!(
            problems(layers, path, "// redis::Client and tokio::spawn are elsewhere\nlet redis = Instantly;"),
            0
        );
        assert_eq!(problems(layers, path, "fn a() {}\n#[cfg(test)]\nmod tests { use std::time::Instant; }"), 0);
    }

    #[test]
    fn an_inner_layer_that_knows_an_outer_one_is_found() {
        assert_eq!(problems(layers, "coordinator/src/store/redis.rs", "use crate::shell::Owner;"), 1);
        assert_eq!(problems(layers, "coordinator/src/shell/owner.rs", "crate::http::view();"), 1);
        assert_eq!(problems(layers, "coordinator/src/http/runs.rs", "redis::cmd(\"GET\")"), 1);
        assert_eq!(problems(layers, "coordinator/src/store/redis.rs", "redis::cmd(\"GET\")"), 0);
        assert_eq!(problems(layers, "protocol/src/id.rs", "use tokio::time;"), 1);
        assert_eq!(problems(layers, "protocol/connect/src/lib.rs", "use tokio::time; redis::cmd(\"GET\")"), 0);
        assert_eq!(problems(layers, "worker/src/lib.rs", "use stepfleet_coordinator::store;"), 1);
        assert_eq!(problems(layers, "coordinator/src/lib.rs", "stepfleet_worker::run()"), 1);
    }

    #[test]
    fn a_long_file_needs_a_reason_and_a_very_long_one_is_refused() {
        let lines = |count: usize, header: &str| format!("//! Subject.\n{header}{}", "\n".repeat(count));
        assert_eq!(problems(shape, "a.rs", &lines(300, "")), 0);
        assert_eq!(problems(shape, "a.rs", &lines(450, "")), 1);
        assert_eq!(problems(shape, "a.rs", &lines(450, "// LENGTH:\n")), 1);
        assert_eq!(problems(shape, "a.rs", &lines(450, "// LENGTH: one table\n")), 0);
        assert_eq!(problems(shape, "a.rs", &lines(650, "// LENGTH: one table\n")), 1);
        assert_eq!(problems(shape, "a.md", &lines(650, "")), 0);
    }

    #[test]
    fn a_file_without_a_subject_is_found() {
        assert_eq!(problems(shape, "a.rs", "use std::fs;\n"), 1);
    }

    #[test]
    fn a_spelled_key_is_found() {
        assert_eq!(problems(key_literals, "worker/src/source.rs", r#"let key = format!("sf:worker:{id}");"#), 1);
        assert_eq!(problems(key_literals, "coordinator/src/store/limit.lua", "redis.call('GET', 'sf:limit')"), 1);
        assert_eq!(problems(key_literals, "worker/src/source.rs", "use sf::keys; // \"sf:meta\"\nlet tsf: u8 = 1;"), 0);
        assert_eq!(problems(key_literals, "protocol/src/keys.rs", r#""sf:meta""#), 0);
        assert_eq!(problems(key_literals, "tests/e2e/chains.rs", r#""sf:meta""#), 0);
    }

    #[test]
    fn sleeps_gaps_and_skipped_tests_are_found() {
        let bad = "std::thread::sleep(second);\ntodo!();\nunimplemented!()\ndbg!(1);\n#[ignore = \"slow\"]\n";
        assert_eq!(problems(left_undone, "worker/src/lib.rs", bad), 5);
        assert_eq!(problems(left_undone, "tests/e2e/chains.rs", bad), 5);
        assert_eq!(problems(left_undone, "worker/src/lib.rs", "// todo!()\nlet mytodo = 1;"), 0);
    }
}
