//! Groups of shards: the shards of a group are called `shard.GROUP.NNNNN.mds`, and may have arrays of another shape than
//! those of other groups.

use crate::{Error, Result};

/// Maximum bytes of a group's name, so that the names of its files are not too long.
const MAX_NAME: usize = 100;

/// The file name of shard `number` of a group; shards without a group have an empty one.
pub fn shard_name(group: &str, number: usize) -> String {
    match group {
        "" => format!("shard.{number:05}.mds"),
        _ => format!("shard.{group}.{number:05}.mds"),
    }
}

/// The group in the name of a shard's uncompressed file, or an empty string.
pub fn group_of(basename: &str) -> &str {
    let file = basename.rsplit_once('/').map_or(basename, |(_, file)| file);
    let stem = file.strip_prefix("shard.").and_then(|rest| rest.strip_suffix(".mds"));
    match stem.and_then(|stem| stem.rsplit_once('.')) {
        Some((group, number)) if is_name(group) && number.bytes().all(|byte| byte.is_ascii_digit()) => group,
        _ => "",
    }
}

/// Checks the name of a group that follows the group `before`.
///
/// # Errors
/// An argument error.
pub fn check(name: &str, before: &str) -> Result<()> {
    if !is_name(name) {
        return Err(Error::argument(format!(
            "the group name {name:?} must have 1 to {MAX_NAME} of the characters A-Z, a-z, 0-9, - and _"
        )));
    }
    match name > before {
        true => Ok(()),
        false => Err(Error::argument(format!(
            "group {name:?} cannot follow group {before:?}: the names of groups must ascend, so that the order of the \
             files is that of the samples"
        ))),
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::{check, group_of, shard_name};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_group_of_a_shard_is_that_of_its_name(name in "[A-Za-z0-9_-]{1,100}|", number: u32, folder in "(a/b/)?") {
            let file = format!("{folder}{}", shard_name(&name, number as usize));
            prop_assert_eq!(group_of(&file), name);
        }

        #[test]
        fn any_name_has_a_group_that_a_writer_takes_or_none(name in ".*|shard\\..*\\.mds") {
            prop_assert!(group_of(&name).is_empty() || check(group_of(&name), "").is_ok());
        }
    }

    #[test]
    fn names_ascend_and_have_plain_characters() {
        assert!(check("001", "000").is_ok() && check("a", "").is_ok());
        for (name, before) in [("", ""), ("0", "0"), ("a", "b"), ("a.b", ""), ("a/b", ""), ("é", ""), (" ", "")] {
            assert!(check(name, before).is_err());
        }
        assert!(check(&"a".repeat(101), "").is_err());
        for name in ["shard.00000.mds", "shard..00000.mds", "shard.a.0000x.mds", "x.a.0.mds", "shard.a.0.mds.zstd"] {
            assert_eq!(group_of(name), "");
        }
    }
}
