//! A virtual disk's name in the guest, and its number: `xvda` is 51712.
//!
//! Source: docs/man/xen-vbd-interface.7 in Xen's tree.

/// The number of a device that has this name, or what is wrong with the name.
///
/// # Errors
/// A text for people.
pub fn devid(name: &str) -> Result<u32, String> {
    let wrong = || {
        format!(
            "`{name}` is no device name: say xvda to xvdz, xvdaa and so on (or hda to hdd, sda to \
             sdp), with a partition's number after it if need be"
        )
    };
    let (bus, rest) =
        name.split_at_checked(3).or_else(|| name.split_at_checked(2)).ok_or_else(wrong)?;
    let (bus, rest) =
        if bus == "xvd" { (bus, rest) } else { name.split_at_checked(2).ok_or_else(wrong)? };
    let letters = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_lowercase()).len();
    let (letters, digits) = rest.split_at(letters);
    let disk = disk_number(letters).ok_or_else(wrong)?;
    let partition = partition_number(digits).ok_or_else(wrong)?;
    match bus {
        "xvd" if disk < 16 && partition < 16 => Ok(202 << 8 | disk << 4 | partition),
        "xvd" if disk < 1 << 20 && partition < 256 => Ok(1 << 28 | disk << 8 | partition),
        "hd" if disk < 2 && partition < 64 => Ok(3 << 8 | disk << 6 | partition),
        "hd" if disk < 4 && partition < 64 => Ok(22 << 8 | (disk - 2) << 6 | partition),
        "sd" if disk < 16 && partition < 16 => Ok(8 << 8 | disk << 4 | partition),
        _ => Err(wrong()),
    }
}

/// The name of a device that has this number; the number itself when it follows no known scheme.
#[must_use]
pub fn name(devid: u32) -> String {
    let (major, minor) = (devid >> 8, devid & 0xff);
    let (bus, disk, partition) = match major {
        202 => ("xvd", minor >> 4, minor & 15),
        3 => ("hd", minor >> 6, minor & 63),
        22 => ("hd", 2 + (minor >> 6), minor & 63),
        8 => ("sd", minor >> 4, minor & 15),
        _ if devid >> 28 == 1 => ("xvd", (devid >> 8) & 0xf_ffff, minor),
        _ => return devid.to_string(),
    };
    let partition = if partition == 0 { String::new() } else { partition.to_string() };
    format!("{bus}{}{partition}", letters(disk))
}

/// a is 0, z is 25, aa is 26.
fn disk_number(letters: &str) -> Option<u32> {
    if letters.is_empty() || letters.len() > 5 {
        return None;
    }
    let value = |sum: u32, letter: u8| sum * 26 + u32::from(letter - b'a') + 1;
    Some(letters.bytes().fold(0, value) - 1)
}

fn letters(disk: u32) -> String {
    let mut letters = Vec::new();
    let mut rest = disk + 1;
    while rest > 0 {
        letters.push(char::from_digit(10 + (rest - 1) % 26, 36).unwrap_or('?'));
        rest = (rest - 1) / 26;
    }
    letters.iter().rev().collect()
}

/// Nothing is the whole disk.
fn partition_number(digits: &str) -> Option<u32> {
    if digits.is_empty() {
        return Some(0);
    }
    let plain = digits.len() <= 3 && digits.bytes().all(|digit| digit.is_ascii_digit());
    if plain && !digits.starts_with('0') { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_those_of_the_interface() {
        for (known, number) in [
            ("xvda", 51712),
            ("xvda1", 51713),
            ("xvdb", 51728),
            ("xvdp15", 51967),
            ("xvdq", 1 << 28 | 16 << 8),
            ("xvda16", 1 << 28 | 16),
            ("xvdz", 1 << 28 | 25 << 8),
            ("xvdaa", 1 << 28 | 26 << 8),
            ("xvdzz", 1 << 28 | 701 << 8),
            ("hda", 768),
            ("hdb", 832),
            ("hdc", 5632),
            ("hdd3", 5699),
            ("sda", 2048),
            ("sdp", 2288),
        ] {
            assert_eq!(devid(known), Ok(number), "{known}");
            assert_eq!(name(number), known);
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for wrong in [
            "",
            "x",
            "xv",
            "xvd",
            "xvd1",
            "xvdA",
            "xvda01",
            "xvda0",
            "xvda256",
            "xvda1b",
            "hde",
            "sdq",
            "sda16",
            "vda",
            "xvdé",
            "/dev/xvda",
            "xvda ",
            "xvdzzzzz",
            "xvdaaaaaaaaaa",
            "é",
            "hdé",
        ] {
            assert!(devid(wrong).is_err(), "{wrong}");
        }
        assert_eq!(name(7), "7");
        assert_eq!(name(u32::MAX), u32::MAX.to_string());
    }
}
