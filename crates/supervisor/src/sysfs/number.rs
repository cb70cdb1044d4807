//! Numbers in texts, as the kernel reads them (lib/kstrtox.c, lib/vsprintf.c).

/// A number of the base that its first digits say, and perhaps a newline after it (`kstrtoul` with base 0).
pub(super) fn unsigned(text: &[u8]) -> Option<u64> {
    let text = line(text);
    let text = text.strip_prefix('+').unwrap_or(text);
    let (digits, base) = match text.strip_prefix('0') {
        Some(rest) if rest.starts_with(['x', 'X']) && rest.len() > 1 => (&rest[1..], 16),
        Some(rest) if !rest.is_empty() => (rest, 8),
        _ => (text, 10),
    };
    // from_str_radix would take another sign.
    let plain = digits.chars().all(|digit| digit.is_digit(base));
    if plain { u64::from_str_radix(digits, base).ok() } else { None }
}

/// The same with a minus sign before it (`kstrtoint`).
pub(super) fn signed(text: &[u8]) -> Option<i32> {
    match line(text).strip_prefix('-') {
        Some(rest) if rest.starts_with('+') => None,
        Some(rest) => {
            let value = unsigned(rest.as_bytes())?;
            i32::try_from(i64::try_from(value).ok()?.checked_neg()?).ok()
        }
        None => i32::try_from(unsigned(text)?).ok(),
    }
}

/// Yes or no, by the first letter or two (`kstrtobool`).
pub(super) fn boolean(text: &[u8]) -> Option<bool> {
    match text {
        [b'e' | b'E' | b'y' | b'Y' | b't' | b'T' | b'1', ..] => Some(true),
        [b'd' | b'D' | b'n' | b'N' | b'f' | b'F' | b'0', ..] => Some(false),
        [b'o' | b'O', b'n' | b'N', ..] => Some(true),
        [b'o' | b'O', b'f' | b'F', ..] => Some(false),
        _ => None,
    }
}

/// Numbers of base 16 between spaces, as many as there are, up to `most` (`sscanf` of `%x`).
pub(super) fn hexadecimal(text: &[u8], most: usize) -> Vec<u64> {
    let text = until_nul(text);
    let mut rest = std::str::from_utf8(text).unwrap_or_default();
    let mut numbers = Vec::new();
    while numbers.len() < most {
        rest = rest.trim_start();
        let start = rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X"));
        let prefixed =
            start.filter(|rest| rest.starts_with(|digit: char| digit.is_ascii_hexdigit()));
        let digits = prefixed.unwrap_or(rest);
        let end = digits.find(|digit: char| !digit.is_ascii_hexdigit()).unwrap_or(digits.len());
        let Ok(number) = u64::from_str_radix(&digits[..end], 16) else { break };
        numbers.push(number);
        rest = &digits[end..];
        if !rest.starts_with(char::is_whitespace) {
            break;
        }
    }
    numbers
}

/// The text without what follows a NUL, and without one newline at its end; nothing if it is no text.
pub(super) fn line(text: &[u8]) -> &str {
    words(text).unwrap_or_default()
}

/// The same; `None` if it is no text.
pub(super) fn words(text: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(until_nul(text)).ok()?;
    Some(text.strip_suffix('\n').unwrap_or(text))
}

fn until_nul(text: &[u8]) -> &[u8] {
    text.split(|&byte| byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_its_base_and_at_most_one_newline() {
        for (text, number) in [
            ("1", Some(1)),
            ("1\n", Some(1)),
            ("+7\n", Some(7)),
            ("0x1F", Some(31)),
            ("017", Some(15)),
            ("0", Some(0)),
            ("1\n\n", None),
            ("", None),
            ("\n", None),
            (" 1", None),
            ("-1", None),
            ("++1", None),
            ("0x", None),
            ("08", None),
            ("18446744073709551616", None),
        ] {
            assert_eq!(unsigned(text.as_bytes()), number, "{text:?}");
        }
        assert_eq!(signed(b"-1\n"), Some(-1));
        assert_eq!(signed(b"-0x80000000"), Some(i32::MIN));
        for text in [&b"--1"[..], b"-+1", b"2147483648"] {
            assert_eq!(signed(text), None);
        }
    }

    #[test]
    fn a_switch_is_read_by_its_first_letters() {
        for (text, value) in [
            ("1\n", Some(true)),
            ("yes", Some(true)),
            ("On", Some(true)),
            ("Enable", Some(true)),
            ("disable", Some(false)),
            ("0", Some(false)),
            ("no", Some(false)),
            ("OFF", Some(false)),
            ("o", None),
            ("2", None),
            ("", None),
        ] {
            assert_eq!(boolean(text.as_bytes()), value, "{text:?}");
        }
    }

    #[test]
    fn what_is_no_text_is_not_nothing() {
        assert_eq!(
            (words(b"\n"), words(b"flr\n\0x"), words(b"\xff")),
            (Some(""), Some("flr"), None)
        );
    }

    #[test]
    fn identities_are_read_as_far_as_they_go() {
        assert_eq!(hexadecimal(b"1b36 0010\n", 7), [0x1b36, 0x10]);
        assert_eq!(hexadecimal(b"0x1b36  10 g", 7), [0x1b36, 0x10]);
        assert_eq!(hexadecimal(b"1 2 3", 2), [1, 2]);
        assert_eq!(hexadecimal(b"1b36:0010", 7), [0x1b36]);
        assert_eq!(hexadecimal(b"\xff", 7), [0_u64; 0]);
    }
}
