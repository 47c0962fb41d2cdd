//! Durations and event times.
//!
//! Inside, every time is a unix time in milliseconds (`i64`). Commands speak milliseconds; stream and hash fields speak
//! unix seconds with decimals, as the world writes them there.

use crate::error::{shown, Code, Error, Result};

/// Milliseconds below this are taken for seconds, seconds above it for milliseconds (it is 1973 and the year 5138).
const SECONDS_MS_BOUNDARY: i64 = 100_000_000_000;

const UNITS: [(&str, i64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Longest duration, in milliseconds: about a thousand years, so that sums of times never overflow.
const DURATION_MS_MAX: i64 = 366_000 * 86_400_000;

/// Reads a duration such as `90s`, `7d`, `1500ms`; a bare number is seconds. Answers milliseconds, at least 1.
pub fn parse_duration(text: &[u8]) -> Result<i64> {
    let malformed = || {
        Error::syntax(format!("duration '{}' must be a positive number with ms, s, m, h or d, such as 7d", shown(text)))
    };
    let digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        b"" => 1_000,
        unit => UNITS.iter().find(|(name, _)| name.as_bytes() == unit).ok_or_else(malformed)?.1,
    };
    let number: i64 = std::str::from_utf8(number).ok().and_then(|n| n.parse().ok()).ok_or_else(malformed)?;
    match number.checked_mul(factor) {
        Some(ms) if (1..=DURATION_MS_MAX).contains(&ms) => Ok(ms),
        _ => Err(malformed()),
    }
}

/// Writes a duration in the largest unit that holds it whole: 604800000 is `7d`.
pub fn format_duration(ms: i64) -> String {
    let (unit, factor) = UNITS.iter().rev().find(|(_, factor)| ms % factor == 0).unwrap_or(&UNITS[0]);
    format!("{}{unit}", ms / factor)
}

/// Reads a unix time in milliseconds from a command. `what` names it in the error.
pub fn parse_unix_ms(what: &str, text: &[u8]) -> Result<i64> {
    let ms: i64 = std::str::from_utf8(text)
        .ok()
        .and_then(|t| t.parse().ok())
        .ok_or_else(|| Error::syntax(format!("{what} '{}' must be a unix time in milliseconds", shown(text))))?;
    checked_unix_ms(what, ms)
}

/// Refuses milliseconds that look like seconds, and times before 1970.
pub fn checked_unix_ms(what: &str, ms: i64) -> Result<i64> {
    if ms < 0 {
        return Err(Error::syntax(format!("{what} {ms} must not be negative")));
    }
    if ms < SECONDS_MS_BOUNDARY {
        return Err(Error::syntax(format!("{what} {ms} looks like seconds, milliseconds are expected")));
    }
    if ms > DURATION_MS_MAX {
        return Err(Error::new(Code::Future, format!("{what} {ms} lies beyond every calendar")));
    }
    Ok(ms)
}

/// True for a positive number of milliseconds that somebody surely wrote in seconds.
pub fn looks_like_seconds(ms: i64) -> bool {
    (1..SECONDS_MS_BOUNDARY).contains(&ms)
}

/// Reads unix seconds with decimals, as stream entries and rows hold them. Answers milliseconds.
pub fn parse_unix_seconds(what: &str, text: &[u8]) -> Result<i64> {
    let seconds: f64 = std::str::from_utf8(text)
        .ok()
        .and_then(|t| t.trim().parse().ok())
        .filter(|s: &f64| s.is_finite())
        .ok_or_else(|| Error::schema(format!("{what} '{}' must be a unix time in seconds", shown(text))))?;
    if seconds < 0.0 {
        return Err(Error::schema(format!("{what} {} must not be negative", shown(text))));
    }
    if seconds > SECONDS_MS_BOUNDARY as f64 {
        return Err(Error::schema(format!("{what} {} looks like milliseconds, seconds are expected", shown(text))));
    }
    Ok((seconds * 1_000.0).round() as i64)
}

/// A row's event time, or `None` where another writer left something that is no time.
pub fn read_unix_seconds(text: &[u8]) -> Option<i64> {
    // The common form, ten digits and up to three decimals, needs no floating point.
    let mut ms: i64 = 0;
    let mut decimals = None;
    for byte in text {
        match (byte, decimals) {
            (b'0'..=b'9', None) if ms < 10_000_000_000_000 => ms = ms * 10 + i64::from(byte - b'0'),
            (b'.', None) => decimals = Some(0u32),
            (b'0'..=b'9', Some(n)) if n < 3 => {
                ms = ms * 10 + i64::from(byte - b'0');
                decimals = Some(n + 1);
            }
            _ => return parse_unix_seconds("event time", text).ok(),
        }
    }
    if text.is_empty() {
        return None;
    }
    let ms = ms * 10i64.pow(3 - decimals.unwrap_or(0));
    (ms <= SECONDS_MS_BOUNDARY * 1_000).then_some(ms)
}

/// Writes unix seconds with the decimals that are there: 1700000000500 is `1700000000.5`.
pub fn format_unix_seconds(ms: i64) -> String {
    let (seconds, rest) = (ms.div_euclid(1_000), ms.rem_euclid(1_000));
    let mut text = String::with_capacity(16);
    text.push_str(itoa::Buffer::new().format(seconds));
    if rest != 0 {
        text.push('.');
        // Three digits with their leading zeros, less the zeros at the end.
        text.push_str(itoa::Buffer::new().format(1_000 + rest)[1..].trim_end_matches('0'));
    }
    text
}

/// Refuses an event time beyond now and the allowed clock skew.
pub fn check_not_future(event_time_ms: i64, now_ms: i64, clock_skew_ms_max: i64, view: &str) -> Result<()> {
    if event_time_ms > now_ms.saturating_add(clock_skew_ms_max) {
        return Err(Error::new(
            Code::Future,
            format!(
                "event time {event_time_ms} of view '{view}' is {} ms ahead of the server's clock, allowed are \
                 {clock_skew_ms_max} (fs.max-clock-skew)",
                event_time_ms - now_ms
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_take_units_and_bare_seconds() {
        for (text, ms) in [("90s", 90_000), ("7d", 604_800_000), ("1500ms", 1_500), ("2m", 120_000), ("3", 3_000)] {
            assert_eq!(parse_duration(text.as_bytes()), Ok(ms), "{text}");
        }
        for bad in ["", "0", "0s", "-1s", "1.5h", "d", "7 d", "7D", "1w", "99999999999999999999d", "9999999d"] {
            assert!(parse_duration(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(format_duration(604_800_000), "7d");
        assert_eq!(format_duration(90_000), "90s");
    }

    #[test]
    fn seconds_and_milliseconds_are_told_apart() {
        let error = parse_unix_ms("AT", b"1700000000").expect_err("seconds");
        assert!(error.message.contains("looks like seconds"), "{error}");
        let error = parse_unix_seconds("timestamp", b"1700000000000").expect_err("milliseconds");
        assert!(error.message.contains("looks like milliseconds"), "{error}");
        assert_eq!(parse_unix_seconds("timestamp", b"1700000000.1234"), Ok(1_700_000_000_123));
        for bad in ["", "abc", "nan", "inf", "-1", "1e300"] {
            assert!(parse_unix_seconds("timestamp", bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_quick_reader_of_seconds_agrees_with_the_careful_one() {
        for text in ["", ".", "5", "1700000000.1239", "1e3", "1700000000.", "x", "99999999999999999", "100000000001"] {
            let careful = parse_unix_seconds("t", text.as_bytes()).ok();
            if text != "." && text != "1700000000." {
                assert_eq!(read_unix_seconds(text.as_bytes()), careful, "{text}");
            }
        }
    }

    proptest! {
        #[test]
        fn seconds_round_trip(ms in 0i64..100_000_000_000_000) {
            prop_assert_eq!(read_unix_seconds(format_unix_seconds(ms).as_bytes()), Some(ms));
            prop_assert_eq!(parse_unix_seconds("t", format_unix_seconds(ms).as_bytes()), Ok(ms));
        }

        #[test]
        fn durations_round_trip(ms in 1i64..DURATION_MS_MAX) {
            prop_assert_eq!(parse_duration(format_duration(ms).as_bytes()), Ok(ms));
        }
    }
}
