//! Quantities as people read them: one spelling for every message, table and plan.

/// Nanoseconds with three significant digits: `1.25 ms`, `1.25 µs`.
pub fn time(ns: f64) -> String {
    if ns == 0.0 {
        return "0 ns".into();
    }
    // A value that would round up to a thousand of a unit is one of the next.
    let (value, unit) = match ns.abs() {
        x if x < 999.5 => (ns, "ns"),
        x if x < 999.5e3 => (ns / 1e3, "µs"),
        x if x < 999.5e6 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    format!("{} {unit}", significant(value))
}

/// Bytes with a binary unit and three significant digits: `12.3 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", significant(value), UNITS[unit])
}

/// A share as a percentage: `1.9 %`.
pub fn percent(share: f64) -> String {
    // Adding zero makes -0 positive.
    format!("{:.1} %", (share * 1e3).round() / 10.0 + 0.0)
}

fn significant(x: f64) -> String {
    let digits = match x.abs() {
        x if x < 9.995 => 2,
        x if x < 99.95 => 1,
        _ => 0,
    };
    format!("{x:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_three_digits() {
        assert_eq!(time(-0.0), "0 ns");
        assert_eq!(time(0.5), "0.50 ns");
        assert_eq!(time(1234.0), "1.23 µs");
        assert_eq!(time(-1234.0), "-1.23 µs");
        assert_eq!(time(99_960.0), "100 µs");
        assert_eq!(time(999_700.0), "1.00 ms");
        assert_eq!(time(12.34e9), "12.3 s");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.00 KiB");
        assert_eq!(bytes(1536), "1.50 KiB");
        assert_eq!(bytes((1 << 20) - 1), "1.00 MiB");
        assert_eq!(bytes(57 << 20), "57.0 MiB");
        assert_eq!(bytes(3 << 40), "3.00 TiB");
        assert_eq!(percent(0.0194), "1.9 %");
        assert_eq!(percent(-1e-9), "0.0 %");
    }
}
