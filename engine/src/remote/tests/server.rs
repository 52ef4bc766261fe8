//! A server of this machine that speaks as the hub, as Zenodo and as any other host do, and that fails when
//! it is told to.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// A request that came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    /// Whether it came to the host that holds large files.
    pub(crate) at_storage: bool,
}

/// What goes wrong with the next request for the content of a file.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The connection closes after so many bytes.
    Break(usize),
    /// This status, with perhaps `Retry-After`.
    Status(u16, Option<u64>),
    /// The body is these bytes, whatever was asked for.
    Content(Vec<u8>),
}

/// A repository of the hub.
#[derive(Clone, Debug, Default)]
pub(crate) struct Repository {
    pub(crate) commit: String,
    /// Path, content and checksum fields of the list, as JSON.
    pub(crate) files: Vec<(String, Vec<u8>, String)>,
    /// The token that opens it.
    pub(crate) gate: Option<String>,
}

/// Everything on the server.
#[derive(Default)]
pub(crate) struct World {
    /// By `models/owner/name` or `datasets/owner/name`.
    pub(crate) repositories: BTreeMap<String, Repository>,
    /// Records of Zenodo, as JSON.
    pub(crate) records: BTreeMap<String, String>,
    /// Other files by path.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) faults: VecDeque<Fault>,
    pub(crate) requests: Vec<Request>,
    /// Whether requests for a part are answered with the whole.
    pub(crate) ignores_ranges: bool,
    storage: String,
}

/// The server: two hosts, which share a world.
pub(crate) struct Server {
    pub(crate) url: String,
    world: Arc<Mutex<World>>,
}

struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Sends no more than this.
    cut: Option<usize>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let world = Arc::new(Mutex::new(World::default()));
        let hub = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let storage = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let url = |listener: &TcpListener| {
            format!("http://{}", listener.local_addr().expect("a bound socket has an address"))
        };
        lock(&world).storage = url(&storage);
        let address = url(&hub);
        for (listener, at_storage) in [(hub, false), (storage, true)] {
            let world = Arc::clone(&world);
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let world = Arc::clone(&world);
                    std::thread::spawn(move || answer(stream, &world, at_storage));
                }
            });
        }
        Self { url: address, world }
    }

    /// Changes the world.
    pub(crate) fn set<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        change(&mut lock(&self.world))
    }

    /// The requests since the last call.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.set(|world| std::mem::take(&mut world.requests))
    }
}

fn lock(world: &Mutex<World>) -> std::sync::MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(stream: TcpStream, world: &Mutex<World>, at_storage: bool) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?.take(1 << 16));
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let request = Request { method, path, headers, at_storage };
    let reply = {
        let mut world = lock(world);
        world.requests.push(request.clone());
        reply(&mut world, &request)
    };
    let mut text = format!("HTTP/1.1 {} -\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("Content-Length: {}\r\n\r\n", reply.body.len()));
    let mut stream = stream;
    stream.write_all(text.as_bytes()).ok()?;
    if request.method != "HEAD" {
        stream.write_all(&reply.body[..reply.cut.unwrap_or(reply.body.len())]).ok()?;
    }
    stream.flush().ok()
}

fn status(status: u16, code: &str) -> Reply {
    let headers = vec![("X-Error-Code".to_owned(), code.to_owned())];
    Reply { status, headers, body: b"a page that says why".to_vec(), cut: None }
}

fn json(text: String) -> Reply {
    Reply { status: 200, headers: Vec::new(), body: text.into_bytes(), cut: None }
}

fn redirect(to: String, headers: &[(&str, &str)]) -> Reply {
    let mut headers: Vec<_> =
        headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    headers.push(("Location".to_owned(), to));
    Reply { status: 302, headers, body: Vec::new(), cut: None }
}

fn reply(world: &mut World, request: &Request) -> Reply {
    let path = request.path.split('?').next().unwrap_or_default().to_owned();
    if let Some(rest) = path.strip_prefix("/api/records/") {
        return match rest.split_once("/files/") {
            None => match world.records.get(rest) {
                Some(text) => json(text.clone()),
                None => status(404, ""),
            },
            Some((record, file)) => {
                let file = file.trim_end_matches("/content");
                let body = world.files.get(&format!("/zenodo/{record}/{file}")).cloned();
                body.map_or_else(|| status(404, ""), |body| content(world, request, &body))
            }
        };
    }
    if let Some(rest) = path.strip_prefix("/api/") {
        let Some((name, revision)) = rest.split_once("/revision/") else { return status(404, "") };
        let Some(repository) = world.repositories.get(name) else { return status(401, "RepoNotFound") };
        if revision != "main" && revision != repository.commit {
            return status(404, "RevisionNotFound");
        }
        let siblings: Vec<String> = repository
            .files
            .iter()
            .map(|(path, body, fields)| {
                format!("{{\"rfilename\": {path:?}, \"size\": {}{fields}}}", body.len())
            })
            .collect();
        let gated = if repository.gate.is_some() { "\"manual\"" } else { "false" };
        return json(format!(
            "{{\"sha\": \"{}\", \"gated\": {gated}, \"siblings\": [{}]}}",
            repository.commit,
            siblings.join(", ")
        ));
    }
    if let Some((name, rest)) = path.split_once("/resolve/") {
        let name = name.trim_start_matches('/');
        let name = if name.starts_with("datasets/") { name.to_owned() } else { format!("models/{name}") };
        let Some(repository) = world.repositories.get(&name) else { return status(401, "RepoNotFound") };
        let authorization = request.headers.get("authorization").cloned().unwrap_or_default();
        if repository.gate.as_ref().is_some_and(|token| authorization != format!("Bearer {token}")) {
            return status(if authorization.is_empty() { 401 } else { 403 }, "GatedRepo");
        }
        let Some((commit, file)) = rest.split_once('/') else { return status(404, "EntryNotFound") };
        let file = file.replace("%20", " ");
        let found = repository.files.iter().find(|(path, ..)| *path == file);
        let Some((_, body, fields)) = found.filter(|_| commit == repository.commit) else {
            return status(404, "EntryNotFound");
        };
        let (body, is_large) = (body.clone(), fields.contains("lfs"));
        if is_large {
            let key = format!("/storage/{name}/{file}");
            let length = body.len().to_string();
            world.files.insert(key.clone(), body);
            let to = format!("{}{key}", world.storage);
            return redirect(to, &[("X-Linked-Size", &length), ("X-Repo-Commit", commit)]);
        }
        return content(world, request, &body);
    }
    if path == "/moved" {
        return redirect("/files/data.bin".to_owned(), &[]);
    }
    match world.files.get(&path).cloned() {
        Some(body) => content(world, request, &body),
        None => status(404, ""),
    }
}

/// A file, or the part of it that is asked for.
fn content(world: &mut World, request: &Request, body: &[u8]) -> Reply {
    let tag = format!("\"{}-{}\"", body.len(), body.iter().map(|byte| u64::from(*byte)).sum::<u64>());
    let headers = vec![("ETag".to_owned(), tag.clone())];
    let whole = Reply { status: 200, headers: headers.clone(), body: body.to_vec(), cut: None };
    if request.method == "HEAD" {
        return whole;
    }
    let fault = world.faults.pop_front();
    if let Some(Fault::Status(status, wait)) = fault {
        let headers = wait.map(|wait| ("Retry-After".to_owned(), wait.to_string())).into_iter().collect();
        return Reply { status, headers, body: Vec::new(), cut: None };
    }
    if let Some(Fault::Content(other)) = fault {
        return Reply { body: other, ..whole };
    }
    let same = request.headers.get("if-range").is_none_or(|known| *known == tag);
    let start = request
        .headers
        .get("range")
        .filter(|_| same && !world.ignores_ranges)
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let mut reply = match start {
        Some(start) if start < body.len() => {
            let mut headers = headers;
            let range = format!("bytes {start}-{}/{}", body.len() - 1, body.len());
            headers.push(("Content-Range".to_owned(), range));
            Reply { status: 206, headers, body: body[start..].to_vec(), cut: None }
        }
        Some(_) => Reply { status: 416, headers, body: Vec::new(), cut: None },
        None => whole,
    };
    if let Some(Fault::Break(after)) = fault {
        reply.cut = Some(after.min(reply.body.len()));
    }
    reply
}
