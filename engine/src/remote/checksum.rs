//! Checksums as publishers give them, `algorithm:hex`.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use md5::Md5;
use sha1::Sha1;
use sha2::Sha256;
use sha2::digest::Digest as _;

/// A published checksum of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checksum {
    algorithm: Algorithm,
    /// Lower case.
    hex: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Md5,
    Sha256,
    /// The name of a blob in git: SHA-1 over `blob <length>\0` and the content.
    Git,
}

const ALGORITHMS: [(&str, Algorithm, usize); 3] =
    [("md5", Algorithm::Md5, 32), ("sha256", Algorithm::Sha256, 64), ("git", Algorithm::Git, 40)];

impl Checksum {
    /// Reads `algorithm` and digits; none if the one is unknown or the others do not fit.
    pub(crate) fn new(algorithm: &str, hex: &str) -> Option<Self> {
        let (_, algorithm, digits) = ALGORITHMS.iter().find(|(name, ..)| *name == algorithm)?;
        let fits = hex.len() == *digits && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        fits.then(|| Self { algorithm: *algorithm, hex: hex.to_ascii_lowercase() })
    }

    /// Reads `algorithm:hex`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        text.split_once(':').and_then(|(algorithm, hex)| Self::new(algorithm, hex))
    }

    /// The checksum of this algorithm that a file has.
    pub(crate) fn of_file(&self, path: &Path) -> std::io::Result<Self> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let hex = match self.algorithm {
            Algorithm::Md5 => hash(Md5::new(), &mut file)?,
            Algorithm::Sha256 => hash(Sha256::new(), &mut file)?,
            Algorithm::Git => hash(Sha1::new_with_prefix(format!("blob {length}\0")), &mut file)?,
        };
        Ok(Self { algorithm: self.algorithm, hex })
    }
}

fn hash<D: sha2::digest::Update + sha2::digest::FixedOutput>(
    mut hasher: D,
    file: &mut File,
) -> std::io::Result<String> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hasher.update(&buffer[..read]),
        }
    }
    Ok(hasher.finalize_fixed().iter().map(|byte| format!("{byte:02x}")).collect())
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = ALGORITHMS.iter().find(|(_, algorithm, _)| *algorithm == self.algorithm);
        write!(f, "{}:{}", name.map_or("", |(name, ..)| name), self.hex)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksums_of_a_known_text() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "hello\n").unwrap();
        for expected in [
            "md5:b1946ac92492d2347c6235b4d2611184",
            "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
            "git:ce013625030ba8dba906f756967f9e9ca394464a",
        ] {
            let checksum = Checksum::parse(
                &expected
                    .to_ascii_uppercase()
                    .replacen("MD5", "md5", 1)
                    .replacen("SHA256", "sha256", 1)
                    .replacen("GIT", "git", 1),
            )
            .unwrap();
            assert_eq!(checksum.to_string(), expected);
            assert_eq!(checksum.of_file(&path).unwrap(), checksum);
        }
        for wrong in ["", "md5", "md5:", "md5:zz", "crc:00", "sha256:b1946ac92492d2347c6235b4d2611184"] {
            assert_eq!(Checksum::parse(wrong), None, "{wrong}");
        }
    }
}
