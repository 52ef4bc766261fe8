//! Credentials from the file that Amazon's tools share: `$AWS_SHARED_CREDENTIALS_FILE` or `~/.aws/credentials`, in
//! its section `$AWS_PROFILE` or `default`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use crate::place::PlaceError;

/// More than any such file holds.
const LONGEST: u64 = 1 << 20;

/// What signs requests. Not shown anywhere.
#[derive(PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) key: String,
    pub(crate) secret: String,
    pub(crate) token: Option<String>,
}

/// The credentials of the file, if there is one.
pub(crate) fn from_file() -> Result<Option<Credentials>, PlaceError> {
    let named = std::env::var_os("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
    let path = named.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".aws/credentials")));
    let Some(path) = path else { return Ok(None) };
    let Ok(metadata) = std::fs::metadata(&path) else { return Ok(None) };
    let refuse = |reason: &str| Err(PlaceError::Credentials(format!("`{}` {reason}", path.display())));
    if metadata.permissions().mode() & 0o077 != 0 {
        return refuse("holds secrets and others may read it: `chmod 600` it");
    }
    if metadata.len() > LONGEST {
        return refuse("is too long for a file of credentials");
    }
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => return refuse(&format!("cannot be read: {error}")),
    };
    let section = std::env::var("AWS_PROFILE").unwrap_or_else(|_| "default".to_owned());
    Ok(read(&text, &section))
}

/// The credentials of one section.
fn read(text: &str, section: &str) -> Option<Credentials> {
    let mut here = false;
    let (mut key, mut secret, mut token) = (None, None, None);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            here = name.trim() == section;
        } else if let Some((name, value)) = line.split_once('=').filter(|_| here) {
            let value = Some(value.trim().to_owned());
            match name.trim() {
                "aws_access_key_id" => key = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    Some(Credentials { key: key?, secret: secret?, token })
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn a_section_is_read_and_others_are_not() {
        let text = "# mine\n[other]\naws_access_key_id = a\naws_secret_access_key=b\n\n[default]\n\
                    aws_access_key_id=c\naws_secret_access_key = d=e\nregion = x\n";
        let found = read(text, "default").unwrap();
        assert_eq!((found.key.as_str(), found.secret.as_str(), found.token), ("c", "d=e", None));
        assert_eq!(read(text, "other").unwrap().key, "a");
        assert!(read(text, "third").is_none());
        assert!(read("[default]\naws_access_key_id=c\n", "default").is_none());
    }
}
