//! The hashes that an index can have, with the names of Python's hashlib and xxhash.

use digest::DynDigest;
use xxhash_rust::{xxh3::Xxh3, xxh32::Xxh32, xxh64::Xxh64};

use crate::{Error, Result};

/// A hash algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Algorithm(&'static str);

/// All names, sorted.
const NAMES: [&str; 17] = [
    "blake2b", "blake2s", "md5", "sha1", "sha224", "sha256", "sha384", "sha3_224", "sha3_256", "sha3_384", "sha3_512",
    "sha512", "xxh128", "xxh32", "xxh3_128", "xxh3_64", "xxh64",
];

impl Algorithm {
    /// Looks up an algorithm by name.
    ///
    /// # Errors
    /// An argument error for an unknown name.
    pub fn parse(name: &str) -> Result<Self> {
        NAMES
            .iter()
            .find(|known| **known == name)
            .map(|known| Self(known))
            .ok_or_else(|| Error::argument(format!("hash {name:?} is not one of {}", NAMES.join(", "))))
    }

    /// The name in an index.
    pub fn name(self) -> &'static str {
        self.0
    }

    /// The lowercase hex digest of the concatenation of `parts`.
    pub fn digest(self, parts: &[&[u8]]) -> String {
        let mut state: Box<dyn DynDigest> = match self.0 {
            "xxh32" => return feed(Xxh32::new(0), parts, Xxh32::update, |state| format!("{:08x}", state.digest())),
            "xxh64" => return feed(Xxh64::new(0), parts, Xxh64::update, |state| format!("{:016x}", state.digest())),
            "xxh3_64" => return feed(Xxh3::new(), parts, Xxh3::update, |state| format!("{:016x}", state.digest())),
            "xxh128" | "xxh3_128" => {
                return feed(Xxh3::new(), parts, Xxh3::update, |state| format!("{:032x}", state.digest128()));
            }
            "blake2b" => Box::new(blake2::Blake2b512::default()),
            "blake2s" => Box::new(blake2::Blake2s256::default()),
            "md5" => Box::new(md5::Md5::default()),
            "sha1" => Box::new(sha1::Sha1::default()),
            "sha224" => Box::new(sha2::Sha224::default()),
            "sha256" => Box::new(sha2::Sha256::default()),
            "sha384" => Box::new(sha2::Sha384::default()),
            "sha3_224" => Box::new(sha3::Sha3_224::default()),
            "sha3_256" => Box::new(sha3::Sha3_256::default()),
            "sha3_384" => Box::new(sha3::Sha3_384::default()),
            "sha3_512" => Box::new(sha3::Sha3_512::default()),
            _ => Box::new(sha2::Sha512::default()),
        };
        for part in parts {
            state.update(part);
        }
        state.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The 64-bit XXH3 of `data`, as a number: how a unit records the content of an image file.
pub fn content_hash(data: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(data)
}

fn feed<S>(mut state: S, parts: &[&[u8]], update: impl Fn(&mut S, &[u8]), hex: impl Fn(&S) -> String) -> String {
    for part in parts {
        update(&mut state, part);
    }
    hex(&state)
}

#[cfg(test)]
mod tests {
    use super::{Algorithm, NAMES, content_hash};

    #[test]
    fn a_digest_does_not_depend_on_how_the_bytes_are_split() {
        for name in NAMES {
            let algorithm = Algorithm::parse(name).unwrap();
            assert_eq!(algorithm.name(), name);
            assert_eq!(algorithm.digest(&[b"abc", b"", b"defg"]), algorithm.digest(&[b"abcdefg"]));
        }
        assert_eq!(Algorithm::parse("sha512").unwrap().digest(&[b"abc"])[..8], *"ddaf35a1");
        assert!(Algorithm::parse("crc32").is_err());
    }

    #[test]
    fn the_content_hash_is_that_of_shards() {
        let digest = Algorithm::parse("xxh3_64").unwrap().digest(&[b"abc"]);
        assert_eq!(format!("{:016x}", content_hash(b"abc")), digest);
    }
}
