//! The argument of GROUP_GET_DEVICE_FD: a device's name, perhaps with the token that gates an
//! SR-IOV function.

use ioasis_uapi::{Errno, Error, Result};

/// What a name says of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Match {
    /// It names another device.
    No,
    /// It names this one.
    Yes {
        /// The token after `vf_token=`.
        token: Option<[u8; 16]>,
    },
}

const KEY: &[u8] = b"vf_token=";
/// Characters of a UUID, with its dashes.
const UUID_LENGTH: usize = 36;

/// Reads `name` for the device called `bdf`. Linux: `vfio_pci_core_match`.
///
/// # Errors
///
/// `EINVAL` when the name is this device's, but what follows is no single well-formed token.
pub(crate) fn parse(name: &[u8], bdf: &str) -> Result<Match> {
    let Some(mut rest) = name.strip_prefix(bdf.as_bytes()) else {
        return Ok(Match::No);
    };
    if !rest.is_empty() && rest[0] != b' ' {
        return Ok(Match::No);
    }
    let mut token = None;
    while let Some(&byte) = rest.first() {
        if byte == b' ' {
            rest = &rest[1..];
            continue;
        }
        let Some(value) = rest.strip_prefix(KEY).filter(|_| token.is_none()) else {
            return Err(Error::new(Errno::EINVAL, "unknown word after the device name"));
        };
        let Some((uuid, after)) = value.split_at_checked(UUID_LENGTH) else {
            return Err(Error::new(Errno::EINVAL, "vf_token is no UUID"));
        };
        token = Some(parse_uuid(uuid)?);
        rest = after;
    }
    Ok(Match::Yes { token })
}

/// A UUID in its usual form, `bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3`.
fn parse_uuid(text: &[u8]) -> Result<[u8; 16]> {
    let malformed = Error::new(Errno::EINVAL, "vf_token is no UUID");
    let mut uuid = [0; 16];
    let mut nibbles = 0;
    for (i, &byte) in text.iter().enumerate() {
        if matches!(i, 8 | 13 | 18 | 23) {
            if byte != b'-' {
                return Err(malformed);
            }
            continue;
        }
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ => return Err(malformed),
        };
        uuid[nibbles / 2] = uuid[nibbles / 2] << 4 | digit;
        nibbles += 1;
    }
    Ok(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BDF: &str = "0000:01:00.0";

    fn errno(name: &str) -> Errno {
        parse(name.as_bytes(), BDF).expect_err(name).errno
    }

    #[test]
    fn a_name_matches_its_device_only() {
        assert_eq!(parse(b"0000:01:00.0", BDF), Ok(Match::Yes { token: None }));
        assert_eq!(parse(b"0000:01:00.0  ", BDF), Ok(Match::Yes { token: None }));
        for other in ["0000:01:00.1", "0000:01:00.01", "0000:01:00", "", "x0000:01:00.0"] {
            assert_eq!(parse(other.as_bytes(), BDF), Ok(Match::No), "{other:?}");
        }
    }

    #[test]
    fn a_token_follows_the_name_once() {
        let uuid = "00112233-4455-6677-8899-aAbBcCdDeEfF";
        let bytes = [
            0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee,
            0xff,
        ];
        let name = format!("{BDF} vf_token={uuid}");
        assert_eq!(parse(name.as_bytes(), BDF), Ok(Match::Yes { token: Some(bytes) }));
        assert_eq!(errno(&format!("{name} vf_token={uuid}")), Errno::EINVAL);
    }

    #[test]
    fn a_malformed_token_or_word_is_refused() {
        for tail in [
            "vf_token=",
            "vf_token=00112233-4455-6677-8899-aabbccddeef",
            "vf_token=00112233x4455-6677-8899-aabbccddeeff",
            "vf_token=g0112233-4455-6677-8899-aabbccddeeff",
            "other=1",
        ] {
            assert_eq!(errno(&format!("{BDF} {tail}")), Errno::EINVAL, "{tail}");
        }
    }
}
