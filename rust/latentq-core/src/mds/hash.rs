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
        let mut hasher = self.start();
        parts.iter().for_each(|part| hasher.update(part));
        hasher.finish()
    }

    /// Starts a digest of bytes that come in pieces.
    pub fn start(self) -> Hasher {
        Hasher(match self.0 {
            "xxh32" => State::Xxh32(Xxh32::new(0)),
            "xxh64" => State::Xxh64(Xxh64::new(0)),
            "xxh3_64" => State::Xxh3(Box::default()),
            "xxh128" | "xxh3_128" => State::Xxh128(Box::default()),
            "blake2b" => other::<blake2::Blake2b512>(),
            "blake2s" => other::<blake2::Blake2s256>(),
            "md5" => other::<md5::Md5>(),
            "sha1" => other::<sha1::Sha1>(),
            "sha224" => other::<sha2::Sha224>(),
            "sha256" => other::<sha2::Sha256>(),
            "sha384" => other::<sha2::Sha384>(),
            "sha3_224" => other::<sha3::Sha3_224>(),
            "sha3_256" => other::<sha3::Sha3_256>(),
            "sha3_384" => other::<sha3::Sha3_384>(),
            "sha3_512" => other::<sha3::Sha3_512>(),
            _ => other::<sha2::Sha512>(),
        })
    }
}

fn other<D: DynDigest + Default + Send + 'static>() -> State {
    State::Other(Box::<D>::default())
}

/// A digest of bytes that come in pieces.
pub struct Hasher(State);

enum State {
    Xxh32(Xxh32),
    Xxh64(Xxh64),
    Xxh3(Box<Xxh3>),
    Xxh128(Box<Xxh3>),
    Other(Box<dyn DynDigest + Send>),
}

impl Hasher {
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Xxh32(state) => state.update(bytes),
            State::Xxh64(state) => state.update(bytes),
            State::Xxh3(state) | State::Xxh128(state) => state.update(bytes),
            State::Other(state) => state.update(bytes),
        }
    }

    /// The lowercase hex digest.
    pub fn finish(self) -> String {
        match self.0 {
            State::Xxh32(state) => format!("{:08x}", state.digest()),
            State::Xxh64(state) => format!("{:016x}", state.digest()),
            State::Xxh3(state) => format!("{:016x}", state.digest()),
            State::Xxh128(state) => format!("{:032x}", state.digest128()),
            State::Other(state) => state.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

/// The 64-bit XXH3 of `data`, as a number: how a unit records the content of an image file.
pub fn content_hash(data: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(data)
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
