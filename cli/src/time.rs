//! Times as people read them in a table: short, and relative to now.

use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) use stepfleet_coordinator::time::unix_ms;

/// Unix milliseconds of this host's clock. Only for showing.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A span in at most five characters or so: `12ms`, `3.4s`, `5m 2s`, `2h 10m`, `3d 4h`.
pub(crate) fn span(ms: u64) -> String {
    let secs = ms / 1_000;
    match secs {
        0 => format!("{ms}ms"),
        1..10 => format!("{}.{}s", secs, ms % 1_000 / 100),
        10..60 => format!("{secs}s"),
        60..3_600 => pair(secs / 60, "m", secs % 60, "s"),
        3_600..86_400 => pair(secs / 3_600, "h", secs / 60 % 60, "m"),
        _ => pair(secs / 86_400, "d", secs / 3_600 % 24, "h"),
    }
}

fn pair(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 { format!("{large}{large_unit}") } else { format!("{large}{large_unit} {small}{small_unit}") }
}

/// How long ago, in one unit: `now`, `12s ago`, `3d ago`. A time that cannot be read is shown as it is.
pub(crate) fn ago(text: &str, now_ms: u64) -> String {
    let Some(then) = unix_ms(text) else { return text.to_owned() };
    let secs = now_ms.saturating_sub(then) / 1_000;
    match secs {
        0 => "now".to_owned(),
        1..60 => format!("{secs}s ago"),
        60..3_600 => format!("{}m ago", secs / 60),
        3_600..86_400 => format!("{}h ago", secs / 3_600),
        _ => format!("{}d ago", secs / 86_400),
    }
}

/// The time of day in UTC, for lines in their order: `23:59:59.999`.
pub(crate) fn clock(text: &str) -> &str {
    text.split_once('T').map_or(text, |(_, time)| time.trim_end_matches('Z'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_ages_are_short() {
        for (ms, text) in [
            (0, "0ms"),
            (999, "999ms"),
            (3_456, "3.4s"),
            (59_999, "59s"),
            (60_000, "1m"),
            (302_000, "5m 2s"),
            (7_800_000, "2h 10m"),
            (273_600_000, "3d 4h"),
        ] {
            assert_eq!(span(ms), text);
        }
        let then = "2026-11-19T23:59:59.999Z";
        let now = |secs: u64| 1_795_132_799_999 + secs * 1_000;
        assert_eq!(ago(then, now(0)), "now");
        assert_eq!(ago(then, now(59)), "59s ago");
        assert_eq!(ago(then, now(3_599)), "59m ago");
        assert_eq!(ago(then, now(90_000)), "1d ago");
        assert_eq!(ago(then, 0), "now", "a clock that is behind");
        assert_eq!(ago("soon", 0), "soon");
        assert_eq!(clock(then), "23:59:59.999");
    }
}
