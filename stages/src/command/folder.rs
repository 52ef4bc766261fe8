//! The folder in which a program runs: inputs on the way in, outputs on the way out.
//!
//! An input is `in/NAME`. What is one file by nature, an outside file or an output that is one file at its top,
//! is that file, and `in/NAME.EXTENSION` is the same under a name with its extension; everything else is a
//! folder. A fan-in or a list is a folder with one entry for each member, named by its axes, or by its number
//! where these do not tell the members apart.
//!
//! Inputs are copies as long as they are small or the disk can clone them, otherwise links; no program can
//! change the store through a copy, and a change through a link is found and fails the action.

use std::collections::BTreeSet;
use std::fs::{Metadata, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use pipe_engine::cache::reflink_or_copy;
use pipe_engine::{Artifact, ArtifactType, InputArtifact, OutputWriter, StageContext, StageError};

/// The folder of the inputs.
pub(super) const INPUTS: &str = "in";

/// So many bytes of inputs are copied; the rest is linked.
const COPIED_BYTES: u64 = 256 << 20;

pub(super) struct WorkingFolder {
    /// Without links on its way.
    path: PathBuf,
    home: PathBuf,
    temporary: PathBuf,
    copied: u64,
    /// Files that are linked, with what they were.
    linked: Vec<(String, PathBuf, Metadata)>,
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StageError {
    move |error| StageError::environment(format!("{doing} `{}`", path.display()), error)
}

fn make(folder: &Path) -> Result<(), StageError> {
    std::fs::create_dir_all(folder).map_err(failed("making", folder))
}

impl WorkingFolder {
    /// Makes the folder, with the inputs of an action.
    pub(super) fn make(context: &StageContext<'_>) -> Result<Self, StageError> {
        let scratch = context.scratch()?;
        let scratch = scratch.canonicalize().map_err(failed("finding", scratch))?;
        let (path, home, temporary) = (scratch.join("work"), scratch.join("home"), scratch.join("tmp"));
        for folder in [&path.join(INPUTS), &home, &temporary] {
            make(folder)?;
        }
        let mut folder = Self { path, home, temporary, copied: 0, linked: Vec::new() };
        for (name, artifacts) in context.all_inputs() {
            let place = format!("{INPUTS}/{name}");
            if !context.is_list(name) {
                for input in artifacts {
                    folder.put(&place, &input.artifact)?;
                }
                continue;
            }
            for (member, input) in members(artifacts).into_iter().zip(artifacts) {
                folder.put(&format!("{place}/{member}"), &input.artifact)?;
            }
        }
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A home of its own: what programs keep there is nobody's input.
    pub(super) fn home(&self) -> &Path {
        &self.home
    }

    pub(super) fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Puts an artifact at a place in the folder.
    fn put(&mut self, place: &str, artifact: &Artifact) -> Result<(), StageError> {
        if let Some(extension) = of_one_file(artifact) {
            let file = artifact.single_file()?;
            self.put_file(place, &file.location, file.bytes)?;
            if let (Some(extension), Some(name)) = (extension, Path::new(place).file_name()) {
                let alias = self.path.join(format!("{place}.{extension}"));
                symlink(name, &alias).map_err(failed("linking", &alias))?;
            }
            return Ok(());
        }
        make(&self.path.join(place))?;
        for file in &artifact.files {
            self.put_file(&format!("{place}/{}", file.path), &file.location, file.bytes)?;
        }
        Ok(())
    }

    fn put_file(&mut self, place: &str, from: &Path, bytes: u64) -> Result<(), StageError> {
        let to = self.path.join(place);
        if let Some(parent) = to.parent() {
            make(parent)?;
        }
        if self.copied.saturating_add(bytes) <= COPIED_BYTES {
            self.copied += bytes;
            reflink_or_copy(from, &to).map_err(|error| failed("copying to", &to)(error.source))?;
            let read_only = Permissions::from_mode(0o444);
            return std::fs::set_permissions(&to, read_only).map_err(failed("protecting", &to));
        }
        let metadata = std::fs::metadata(from).map_err(failed("reading", from))?;
        symlink(from, &to).map_err(failed("linking", &to))?;
        self.linked.push((place.to_owned(), from.to_owned(), metadata));
        Ok(())
    }

    /// Fails if the program changed what it was to read.
    pub(super) fn check_inputs(&self) -> Result<(), StageError> {
        let state = |one: &Metadata| (one.ino(), one.len(), one.mtime(), one.mtime_nsec());
        for (place, from, before) in &self.linked {
            if !std::fs::metadata(from).is_ok_and(|now| state(&now) == state(before)) {
                return Err(StageError::failed(format!("the program changed its input `{place}`")));
            }
        }
        Ok(())
    }

    /// The files of an output of the program, all of which lie in the working folder.
    pub(super) fn find(&self, declared: &str) -> Result<Vec<Written>, StageError> {
        let relative = declared.trim_end_matches('/');
        let inside = self.inside(&self.path.join(relative), declared)?;
        if !declared.ends_with('/') {
            if inside.is_dir() {
                let message = format!("`{declared}` is a folder; declare it as `{declared}/`");
                return Err(StageError::failed(message));
            }
            return Ok(vec![self.written(relative.to_owned(), inside)]);
        }
        if !inside.is_dir() {
            return Err(StageError::failed(format!("`{declared}` is no folder; declare it as `{relative}`")));
        }
        let mut written = Vec::new();
        let mut folders = vec![(relative.to_owned(), inside)];
        let mut seen = BTreeSet::new();
        while let Some((prefix, folder)) = folders.pop() {
            if !seen.insert(folder.clone()) {
                return Err(StageError::failed(format!("links in `{declared}` lead to one folder twice")));
            }
            for entry in std::fs::read_dir(&folder).map_err(failed("listing", &folder))? {
                let entry = entry.map_err(failed("listing", &folder))?;
                let Ok(name) = entry.file_name().into_string() else {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    return Err(StageError::failed(format!("the name of `{prefix}/{name}` is not UTF-8")));
                };
                let place = format!("{prefix}/{name}");
                let inside = self.inside(&entry.path(), &place)?;
                if inside.is_dir() {
                    folders.push((place, inside));
                } else {
                    written.push(self.written(place, inside));
                }
            }
        }
        if written.is_empty() {
            return Err(StageError::failed(format!(
                "the program wrote no file into its output `{declared}`"
            )));
        }
        Ok(written)
    }

    fn written(&self, place: String, real: PathBuf) -> Written {
        let is_linked = self.path.join(&place) != real;
        Written { place, real, is_linked }
    }

    /// Where an output really lies; an error if it is not there, or not in the working folder.
    fn inside(&self, path: &Path, declared: &str) -> Result<PathBuf, StageError> {
        let real = path.canonicalize().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound if path.symlink_metadata().is_ok() => {
                StageError::failed(format!("output `{declared}` is a link to nothing"))
            }
            std::io::ErrorKind::NotFound => {
                StageError::failed(format!("the program did not write its output `{declared}`"))
            }
            _ => failed("finding", path)(error),
        })?;
        if !real.starts_with(&self.path) || real.starts_with(self.path.join(INPUTS)) {
            return Err(StageError::failed(format!(
                "output `{declared}` lies outside the working folder: it leads to `{}`; let the program copy it",
                real.display()
            )));
        }
        let metadata = real.metadata().map_err(failed("reading", &real))?;
        if !metadata.is_file() && !metadata.is_dir() {
            return Err(StageError::failed(format!("output `{declared}` is neither a file nor a folder")));
        }
        Ok(real)
    }
}

/// A file that the program wrote.
#[derive(Debug)]
pub(super) struct Written {
    place: String,
    real: PathBuf,
    /// Whether it lies elsewhere, in the folder too.
    pub(super) is_linked: bool,
}

impl Written {
    /// Takes the file. Those that are linked have to be taken first, while what they lead to is still there.
    pub(super) fn take(&self, writer: &OutputWriter) -> Result<(), StageError> {
        let to = writer.path(&self.place)?;
        // A file with a second name, a hard link, would stay writable under it.
        let is_single = self.real.metadata().is_ok_and(|metadata| metadata.nlink() == 1);
        if !self.is_linked && is_single && std::fs::rename(&self.real, &to).is_ok() {
            return Ok(());
        }
        reflink_or_copy(&self.real, &to).map(drop).map_err(|error| failed("copying to", &to)(error.source))
    }
}

/// Whether an artifact is one file by nature; then the extension that its name ends in, if there is one.
fn of_one_file(artifact: &Artifact) -> Option<Option<String>> {
    let file = artifact.single_file().ok()?;
    let kind = artifact.artifact_type.as_str();
    let stem = file.path.split('.').next().unwrap_or_default();
    // A folder of outside files may hold only one; a file by itself is always called `source`, a blob by its
    // digest.
    let is_one = (kind == ArtifactType::FILE.0 && (stem == "source" || stem == artifact.digest.to_hex()))
        || kind == ArtifactType::TREE.0;
    let extension = Path::new(&file.path).extension().and_then(|extension| extension.to_str());
    (is_one && !file.path.contains('/')).then(|| extension.map(str::to_owned))
}

/// The names of the members of a list.
fn members(artifacts: &[InputArtifact]) -> Vec<String> {
    let by_axes: Vec<String> = artifacts
        .iter()
        .map(|input| {
            let axes: Vec<String> =
                input.axes.iter().map(|(axis, value)| format!("{axis}={value}")).collect();
            axes.join(",")
        })
        .collect();
    let distinct: BTreeSet<&String> = by_axes.iter().collect();
    if distinct.len() == artifacts.len() && by_axes.iter().all(|name| !name.is_empty()) {
        return by_axes;
    }
    (0..artifacts.len()).map(|index| index.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pipe_engine::ArtifactFile;
    use pipe_engine::cache::Digest;

    use super::*;

    fn artifact(kind: &str, paths: &[&str]) -> Artifact {
        let file =
            |path: &&str| ArtifactFile { path: (*path).to_owned(), bytes: 0, location: PathBuf::new() };
        Artifact {
            artifact_type: kind.to_owned(),
            digest: Digest::of(b""),
            files: paths.iter().map(file).collect(),
            origin: None,
        }
    }

    #[test]
    fn one_file_by_nature_is_a_file() {
        let extension = |kind: &str, paths: &[&str]| of_one_file(&artifact(kind, paths));
        assert_eq!(extension("file", &["source.npz"]), Some(Some("npz".to_owned())));
        assert_eq!(extension("file", &["source"]), Some(None));
        assert_eq!(extension("tree", &["out.txt"]), Some(Some("txt".to_owned())));
        // These have one file by chance.
        assert_eq!(extension("file", &["only.csv"]), None);
        assert_eq!(extension("file", &["README"]), None);
        assert_eq!(extension("tree", &["plots/one.png"]), None);
        assert_eq!(extension("table<images>", &["part-00000.parquet"]), None);
        assert_eq!(extension("tree", &["a", "b"]), None);
    }

    #[test]
    fn members_are_named_by_axes_or_numbers() {
        let input = |axes: &[(&str, &str)]| InputArtifact {
            axes: axes
                .iter()
                .map(|(axis, value)| ((*axis).to_owned(), (*value).to_owned()))
                .collect::<BTreeMap<_, _>>(),
            stage: String::new(),
            artifact: artifact("tree", &["a"]),
        };
        let names = |inputs: &[InputArtifact]| members(inputs).join(" ");
        assert_eq!(
            names(&[input(&[("m", "a"), ("s", "0")]), input(&[("m", "b"), ("s", "0")])]),
            "m=a,s=0 m=b,s=0"
        );
        assert_eq!(names(&[input(&[("m", "a")])]), "m=a");
        assert_eq!(names(&[input(&[("m", "a")]), input(&[("m", "a")])]), "0 1");
        assert_eq!(names(&[input(&[]), input(&[])]), "0 1");
    }
}
