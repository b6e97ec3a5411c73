//! Durations as people write them: `500ms`, `5s`, `2m`, `1h`, and sums of these (`1m30s`).

use std::time::Duration;

/// Parses a duration. A bare number other than 0 is rejected, because its unit would be a guess.
pub fn parse(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let wrong = || "expected a duration such as 500ms, 5s, 2m or 1m30s".to_owned();
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        let tail = &rest[digits..];
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let unit = match &tail[..letters] {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let part = Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = &tail[letters..];
    }
    Ok(total)
}

/// Parses a duration greater than zero.
pub fn parse_positive(text: &str) -> Result<Duration, String> {
    match parse(text)? {
        Duration::ZERO => Err("must be longer than 0".into()),
        duration => Ok(duration),
    }
}

/// Formats a duration roughly: `4 s`, `350 ms`, `2 min 30 s`.
pub fn show_rough(duration: Duration) -> String {
    match duration.as_millis() {
        millis @ 0..1_000 => format!("{millis} ms"),
        1_000..120_000 => format!("{} s", duration.as_secs()),
        _ => show(duration),
    }
}

/// Formats a duration with at most three significant digits and a suitable unit.
pub fn show(duration: Duration) -> String {
    let micros = duration.as_micros();
    let seconds = duration.as_secs();
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..10_000 => format!("{:.2} ms", micros as f64 / 1e3),
        10_000..100_000 => format!("{:.1} ms", micros as f64 / 1e3),
        100_000..1_000_000 => format!("{} ms", micros / 1_000),
        1_000_000..10_000_000 => format!("{:.1} s", micros as f64 / 1e6),
        _ if seconds < 120 => format!("{seconds} s"),
        _ if seconds < 7_200 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_parsed() {
        assert_eq!(parse("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(parse("5s").unwrap(), Duration::from_secs(5));
        assert_eq!(parse("1.5s").unwrap(), Duration::from_millis(1500));
        assert_eq!(parse("1m30s").unwrap(), Duration::from_secs(90));
        assert_eq!(parse("1h").unwrap(), Duration::from_secs(3600));
        assert_eq!(parse("0").unwrap(), Duration::ZERO);
    }

    #[test]
    fn a_duration_without_a_unit_is_rejected() {
        for text in ["", "5", "s", "5d", "-5s", "1e400s", "5s ", "99999999999999999999h"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert_eq!(parse_positive("0s").unwrap_err(), "must be longer than 0");
    }

    #[test]
    fn a_rough_duration_has_whole_units() {
        assert_eq!(show_rough(Duration::from_millis(37)), "37 ms");
        assert_eq!(show_rough(Duration::from_millis(4_900)), "4 s");
        assert_eq!(show_rough(Duration::from_secs(150)), "2 min 30 s");
    }

    #[test]
    fn a_duration_has_three_digits_and_a_suitable_unit() {
        let show = |micros| show(Duration::from_micros(micros));
        assert_eq!(show(37), "37 µs");
        assert_eq!(show(1_234), "1.23 ms");
        assert_eq!(show(37_400), "37.4 ms");
        assert_eq!(show(123_456), "123 ms");
        assert_eq!(show(4_200_000), "4.2 s");
        assert_eq!(show(95_000_000), "95 s");
        assert_eq!(show(150_000_000), "2 min 30 s");
        assert_eq!(show(7_380_000_000), "2 h 3 min");
    }
}
