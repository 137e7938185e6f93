//! How numbers and texts are written in figures and reports.

/// A number to so many significant digits: `0.01235`, `1,235`, `−2.5×10⁻⁷`.
///
/// # Examples
/// ```
/// use job_kit::report::number;
///
/// assert_eq!(number(1234.56, 4), "1,235");
/// assert_eq!(number(0.0123456, 3), "0.0123");
/// assert_eq!(number(-2.5e-7, 2), "−2.5×10⁻⁷");
/// ```
pub fn number(value: f64, digits: usize) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 {
            "∞".to_owned()
        } else {
            "\u{2212}∞".to_owned()
        };
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    let digits = digits.max(1);
    // The exponent after rounding: 9.9996 to four digits is 10.00.
    let scientific = format!("{:.*e}", digits - 1, value.abs());
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..7).contains(&exponent) {
        return decimal(
            value,
            usize::try_from(digits as i32 - 1 - exponent).unwrap_or(0),
        );
    }
    let sign = if value < 0.0 { "\u{2212}" } else { "" };
    format!("{sign}{mantissa}×10{}", superscript(exponent))
}

/// A whole number, with a comma at the thousands.
pub fn integer(value: i64) -> String {
    // Exact for every integer, unlike a way through f64.
    let sign = if value < 0 { "\u{2212}" } else { "" };
    format!("{sign}{}", in_thousands(&value.unsigned_abs().to_string()))
}

/// A number with its decimals, a real minus sign, and a comma at the thousands.
pub(crate) fn decimal(value: f64, decimals: usize) -> String {
    let text = format!("{:.decimals$}", value.abs());
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let negative = value < 0.0 && text.chars().any(|c| c.is_ascii_digit() && c != '0');
    let sign = if negative { "\u{2212}" } else { "" };
    format!("{sign}{}{rest}", in_thousands(whole))
}

/// Digits with a comma at the thousands.
fn in_thousands(digits: &str) -> String {
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// An exponent in raised digits.
pub(crate) fn superscript(exponent: i32) -> String {
    exponent
        .to_string()
        .chars()
        .map(|c| match c {
            '-' => '⁻',
            '1' => '¹',
            '2' => '²',
            '3' => '³',
            '4' => '⁴',
            '5' => '⁵',
            '6' => '⁶',
            '7' => '⁷',
            '8' => '⁸',
            '9' => '⁹',
            _ => '⁰',
        })
        .collect()
}

/// Text safe inside HTML and its attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            // XML and HTML have no place for the other control characters.
            c if c.is_control() && !matches!(c, '\n' | '\t') => escaped.push('\u{FFFD}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        for (value, text) in [
            (0.0, "0"),
            (9.99996, "10.00"),
            (-0.5, "\u{2212}0.5000"),
            (3e6, "3,000,000"),
            (6.02e23, "6.020×10²³"),
            (0.000_123_4, "0.0001234"),
        ] {
            assert_eq!(number(value, 4), text);
        }
        assert_eq!(integer(i64::MIN), "\u{2212}9,223,372,036,854,775,808");
    }
}
