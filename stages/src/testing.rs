//! Running a stage kind in a test: files in, artifacts out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use pipe_engine::cache::{Digest, table_digest, tree_digest};
use pipe_engine::{
    AnyKind, Artifact, ArtifactFile, Checkpoints, InputArtifact, OutputWriter, StageContext, StageError,
    StageHost,
};
use tempfile::TempDir;

/// A host that remembers warnings and what was logged.
#[derive(Default)]
pub(crate) struct Listener {
    warnings: Mutex<Vec<String>>,
    lines: Mutex<Vec<String>>,
    counts: Mutex<BTreeMap<String, u64>>,
}

impl StageHost for Listener {
    fn progress(&self, _: u64, _: u64, _: &str, _: &[(&str, f64)]) {}
    fn log(&self, line: &str) {
        self.lines.lock().unwrap().push(line.to_owned());
    }
    fn warn(&self, message: &str) {
        self.warnings.lock().unwrap().push(message.to_owned());
    }
    fn count(&self, what: &str, number: u64) {
        *self.counts.lock().unwrap().entry(what.to_owned()).or_default() += number;
    }
    fn cancelled(&self) -> bool {
        false
    }
}

/// What a stage made: artifacts by port, its warnings and what it logged. The files live as long as this.
pub(crate) struct Made {
    pub(crate) artifacts: BTreeMap<String, Artifact>,
    pub(crate) warnings: Vec<String>,
    pub(crate) lines: Vec<String>,
    /// What it counted.
    pub(crate) counts: BTreeMap<String, u64>,
    _folder: TempDir,
}

impl std::ops::Index<&str> for Made {
    type Output = Artifact;

    fn index(&self, port: &str) -> &Artifact {
        &self.artifacts[port]
    }
}

/// Runs a kind on `threads` threads.
pub(crate) fn run_on(
    threads: usize,
    kind: &dyn AnyKind,
    params: &serde_json::Value,
    inputs: &[(&str, &Artifact)],
) -> Result<Made, StageError> {
    let input = |artifact: &Artifact| InputArtifact {
        axes: BTreeMap::new(),
        stage: String::new(),
        artifact: artifact.clone(),
    };
    let inputs = inputs.iter().map(|(name, artifact)| ((*name).to_owned(), vec![input(artifact)]));
    run_with(threads, kind, params, inputs.collect())
}

/// As [`run_on`], with inputs that may be fans.
pub(crate) fn run_with(
    threads: usize,
    kind: &dyn AnyKind,
    params: &serde_json::Value,
    inputs: BTreeMap<String, Vec<InputArtifact>>,
) -> Result<Made, StageError> {
    let host = Listener::default();
    let mut made = run_hosted(&host, Checkpoints::none(), threads, kind, params, inputs)?;
    made.warnings = host.warnings.into_inner().unwrap();
    made.lines = host.lines.into_inner().unwrap();
    made.counts = host.counts.into_inner().unwrap();
    Ok(made)
}

/// As [`run_with`], with a host that may stop the stage, and with checkpoints.
pub(crate) fn run_hosted(
    host: &dyn StageHost,
    checkpoints: Checkpoints,
    threads: usize,
    kind: &dyn AnyKind,
    params: &serde_json::Value,
    inputs: BTreeMap<String, Vec<InputArtifact>>,
) -> Result<Made, StageError> {
    let folder = TempDir::new().unwrap();
    let resolved = kind.resolve(params).unwrap_or_else(|problems| panic!("{problems:?}"));
    let ports = kind.outputs(&resolved);
    let outputs = ports.iter().map(|port| {
        let folder = folder.path().join(&port.name);
        std::fs::create_dir(&folder).unwrap();
        (port.name.clone(), OutputWriter::new(folder))
    });
    let scratch = folder.path().to_owned();
    let context = StageContext::new(inputs, outputs.collect(), host, threads, scratch, "{}".to_owned());
    let mut context = context.with_checkpoints(checkpoints);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| kind.run(&resolved, &mut context))?;
    let artifacts = ports.iter().map(|port| {
        let writer = context.output(&port.name).unwrap();
        let (folder, parts) = (writer.folder().to_owned(), writer.table().map(<[_]>::to_vec));
        let mut artifact = tree(&folder, port.artifact.0);
        if let Some(parts) = parts {
            let parts: Vec<Digest> = parts.iter().map(|part| part.digest).collect();
            artifact.digest = table_digest(&parts);
        }
        (port.name.clone(), artifact)
    });
    Ok(Made {
        artifacts: artifacts.collect(),
        warnings: Vec::new(),
        lines: Vec::new(),
        counts: BTreeMap::new(),
        _folder: folder,
    })
}

/// Runs a kind on two threads.
pub(crate) fn run(
    kind: &dyn AnyKind,
    params: &serde_json::Value,
    inputs: &[(&str, &Artifact)],
) -> Result<Made, StageError> {
    run_on(2, kind, params, inputs)
}

/// The files below a folder as an artifact.
pub(crate) fn tree(folder: &Path, artifact_type: &str) -> Artifact {
    let mut files = Vec::new();
    collect(folder, folder, &mut files);
    let digest =
        tree_digest(files.iter().map(|file| {
            (file.path.as_str(), file.bytes, Digest::of(&std::fs::read(&file.location).unwrap()))
        }));
    let files = files.into_iter().collect();
    Artifact { artifact_type: artifact_type.to_owned(), digest, files, origin: None }
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<ArtifactFile>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let location = entry.unwrap().path();
        if location.is_dir() {
            collect(root, &location, files);
            continue;
        }
        let path = location.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        files.push(ArtifactFile { path, bytes: location.metadata().unwrap().len(), location });
    }
}

/// An artifact whose safetensors file `name` holds nothing but NaN, as long as the folder lives.
pub(crate) fn poisoned(artifact: &Artifact, name: &str) -> (TempDir, Artifact) {
    let folder = TempDir::new().unwrap();
    for file in &artifact.files {
        let target = folder.path().join(&file.path);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        let mut bytes = std::fs::read(&file.location).unwrap();
        if file.path == name {
            let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            bytes[header..]
                .chunks_exact_mut(4)
                .for_each(|value| value.copy_from_slice(&f32::NAN.to_le_bytes()));
        }
        std::fs::write(target, bytes).unwrap();
    }
    let artifact = tree(folder.path(), &artifact.artifact_type);
    assert!(artifact.files.iter().any(|file| file.path == name), "{:?}", artifact.files);
    (folder, artifact)
}

/// One file from outside, as the engine gives it to a stage.
pub(crate) fn source(file: &Path) -> Artifact {
    let bytes = std::fs::read(file).unwrap();
    let extension = file.extension().map(|extension| extension.to_string_lossy().into_owned());
    let path = extension.map_or("source".to_owned(), |extension| format!("source.{extension}"));
    let file = ArtifactFile { path, bytes: bytes.len() as u64, location: file.to_owned() };
    Artifact {
        artifact_type: "file".to_owned(),
        digest: Digest::of(&bytes),
        files: file.into(),
        origin: None,
    }
}

/// A folder or file of the sample data (`PIPE_DATA`, by default `../shared/data` beside the repository);
/// prints why a test is skipped where it is missing.
pub(crate) fn data(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("PIPE_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"), PathBuf::from);
    let found = root.join(path);
    if found.exists() {
        return Some(found);
    }
    println!("SKIPPED {path}: `{}` does not exist (set PIPE_DATA)", found.display());
    None
}
