//! Finds the files that a source names: one file, a folder with all below it, or what matches a glob.

use std::io;
use std::path::Path;

use crate::glob::{self, Glob};
use crate::sorted::{Sorted, Sorter};
use crate::source_files::{Place, SourceFiles};
use crate::sources::SourceError;

/// The files of a source, sorted by path, their lengths not known yet.
///
/// # Errors
/// If nothing is there or a folder cannot be listed.
pub(crate) fn locate(base: &Path, pattern: &str) -> Result<SourceFiles, SourceError> {
    if pattern.is_empty() || pattern.contains('\0') {
        return Err(SourceError::new(base, "the source has no path"));
    }
    let is_glob = glob::is_glob(pattern);
    let (folder, rest) = if is_glob { glob::split(pattern) } else { (pattern, "") };
    let root = base.join(folder);
    if !is_glob {
        let metadata = std::fs::metadata(&root).map_err(|error| SourceError::io(&root, &error))?;
        if !metadata.is_dir() && !metadata.is_file() {
            return Err(SourceError::new(&root, "it is neither a file nor a folder"));
        }
        if metadata.is_file() {
            let name = glob::single(pattern);
            let mut only = SourceFiles::builder(Place::At(root), false);
            only.push(&name, 0, 0)?;
            return Ok(only.finish());
        }
    }
    let glob = is_glob.then(|| Glob::parse(rest)).transpose();
    let glob = glob.map_err(|reason| SourceError::new(Path::new(pattern), reason))?;
    let mut files = SourceFiles::builder(Place::Below(root.clone()), false);
    walk(&root, &mut |path| {
        if glob.as_ref().is_none_or(|glob| glob.matches(path)) {
            files.push(path, 0, 0)?;
        }
        Ok(())
    })?;
    let files = files.finish();
    match files.is_empty() {
        false => Ok(files),
        true if is_glob => Err(SourceError::new(&base.join(pattern), "no file matches")),
        true => Err(SourceError::new(&root, "the folder holds no files")),
    }
}

/// Gives `each` the paths of all files below a folder, in their order. Symbolic links are followed where they stay
/// inside.
fn walk(root: &Path, each: &mut dyn FnMut(&str) -> Result<(), SourceError>) -> Result<(), SourceError> {
    let real_root = root.canonicalize().map_err(|error| SourceError::io(root, &error))?;
    walk_below(root, "", &real_root, each)
}

/// As [`walk`], of the folder with this path inside the root, with its `/`.
fn walk_below(
    root: &Path,
    prefix: &str,
    real_root: &Path,
    each: &mut dyn FnMut(&str) -> Result<(), SourceError>,
) -> Result<(), SourceError> {
    for pair in names(real_root, &root.join(prefix))?.iter() {
        // They were texts when they were sorted.
        let path = format!("{prefix}{}", String::from_utf8_lossy(&pair?.0));
        match path.ends_with('/') {
            true => walk_below(root, &path, real_root, each)?,
            false => each(&path)?,
        }
    }
    Ok(())
}

/// The names in a folder, those of folders with their `/`: so sorted, all paths below come in their order. They are
/// sorted in a temporary file where there are very many.
fn names(real_root: &Path, folder: &Path) -> Result<Sorted, SourceError> {
    let refuse = |error: io::Error| SourceError::io(folder, &error);
    let mut names = Sorter::new(&std::env::temp_dir());
    for entry in std::fs::read_dir(folder).map_err(refuse)? {
        let entry = entry.map_err(refuse)?;
        let name = entry.file_name();
        let refuse = |reason: &str| SourceError::new(&entry.path(), reason);
        let name = name.to_str().ok_or_else(|| refuse("the name is not UTF-8"))?;
        let kind = entry.file_type().map_err(|error| SourceError::io(&entry.path(), &error))?;
        let is_folder = if kind.is_symlink() {
            follow(real_root, folder, &entry.path())?
        } else if kind.is_dir() || kind.is_file() {
            kind.is_dir()
        } else {
            return Err(refuse("it is neither a file nor a folder"));
        };
        match is_folder {
            true => names.push(format!("{name}/").as_bytes(), b"")?,
            false => names.push(name.as_bytes(), b"")?,
        }
    }
    Ok(names.finish()?)
}

/// Whether a link leads to a folder; an error where it leaves the source or leads around in a circle.
fn follow(real_root: &Path, folder: &Path, link: &Path) -> Result<bool, SourceError> {
    let target = link.canonicalize().map_err(|error| SourceError::io(link, &error))?;
    if !target.starts_with(real_root) {
        return Err(SourceError::new(link, format!("the link leaves the source, to `{}`", target.display())));
    }
    let is_folder = target.is_dir();
    let here = folder.canonicalize().map_err(|error| SourceError::io(folder, &error))?;
    if is_folder && here.starts_with(&target) {
        return Err(SourceError::new(link, "the link leads to a folder that it lies in"));
    }
    Ok(is_folder)
}
