//! A small Hugging Face hub on loopback for tests: files, commits, redirects, ranges, tokens and faults; it never leaves 127.0.0.1.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

/// What goes wrong with a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Another status, with the hub's `X-Error-Code`.
    Status(u16, &'static str),
    /// The body ends after so many bytes, and the connection with it.
    CutAfter(usize),
    /// Status 200 with this body instead.
    Body(Vec<u8>),
    /// The whole file in spite of a `Range` header.
    IgnoreRange,
    /// Another value of a header of the answer.
    Header(&'static str, &'static str),
    /// Nothing at all comes, for longer than any test waits.
    Silence,
}

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The method, such as `GET`.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The `Range` header.
    pub range: Option<String>,
}

#[derive(Default)]
struct State {
    /// (model, revision) to commit.
    refs: HashMap<(String, String), String>,
    /// (model, commit) to files.
    commits: HashMap<(String, String), BTreeMap<String, Vec<u8>>>,
    /// Large files by digest.
    blobs: HashMap<String, Vec<u8>>,
    /// Old names of models.
    renamed: HashMap<String, String>,
    token: Option<String>,
    storage: Option<String>,
    chunk_store: bool,
    /// Method, a part of the path, how many times yet, what.
    faults: Vec<(&'static str, String, usize, Fault)>,
    seen: Vec<Seen>,
}

/// The server; it stops when dropped.
pub struct HubServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl HubServer {
    /// Serves on a free port.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port on loopback");
        let address = listener.local_addr().expect("the port's number");
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // The state is gone from the other side: the test is over.
                if Arc::strong_count(&shared) == 1 {
                    return;
                }
                let shared = Arc::clone(&shared);
                // A client that hangs up is part of the tests.
                thread::spawn(move || drop(answer(&stream, &shared)));
            }
        });
        Self { address, state }
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds a commit and points a branch at it.
    pub fn commit(&self, model: &str, branch: &str, commit: &str, files: &[(&str, &[u8])]) {
        let mut state = self.state();
        for (_, bytes) in files {
            state.blobs.insert(sha256(bytes), bytes.to_vec());
        }
        let files = files
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec()))
            .collect();
        state
            .commits
            .insert((model.to_owned(), commit.to_owned()), files);
        state
            .refs
            .insert((model.to_owned(), branch.to_owned()), commit.to_owned());
    }

    /// From now on `old` redirects to `new`, as after a change of name.
    pub fn rename(&self, old: &str, new: &str) {
        self.state().renamed.insert(old.to_owned(), new.to_owned());
    }

    /// Demands this token.
    pub fn require_token(&self, token: &str) {
        self.state().token = Some(token.to_owned());
    }

    /// Sends clients to another server for large files, which takes over those of this one.
    pub fn store_at(&self, storage: &HubServer) {
        let blobs = self.state().blobs.clone();
        storage.state().blobs.extend(blobs);
        self.state().storage = Some(storage.url());
    }

    /// Offers large files by way of a chunk store (Xet) too, which does not answer, as behind many mirrors.
    pub fn offer_chunk_store(&self) {
        self.state().chunk_store = true;
    }

    /// Lets the next `times` requests with this method whose path contains `part` go wrong.
    pub fn fail(&self, method: &'static str, part: &str, times: usize, fault: Fault) {
        self.state()
            .faults
            .push((method, part.to_owned(), times, fault));
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.state().faults.clear();
    }

    /// The requests since the last call.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state().seen)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no test panics while it holds the state")
    }
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.state = Arc::default();
        // Wakes the listener, which then sees that it is alone.
        drop(TcpStream::connect(self.address));
    }
}

/// The SHA-256 as the hub writes it.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Reply {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
        }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn error(status: u16, code: &str) -> Self {
        Self::new(status, r#"{"error":"the loopback hub refuses"}"#).with("X-Error-Code", code)
    }
}

fn answer(stream: &TcpStream, shared: &Arc<Mutex<State>>) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (request, body) = read_request(&mut reader)?;
    let (reply, fault) = {
        let mut state = shared.lock().expect("no handler panics");
        state.seen.push(request.clone());
        let fault = next_fault(&mut state, &request);
        (reply_to(&state, &request, &body, fault.as_ref()), fault)
    };
    let mut reply = reply;
    if let Some(Fault::Header(name, value)) = &fault {
        reply
            .headers
            .retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        reply.headers.push((*name, (*value).to_owned()));
    }
    if matches!(fault, Some(Fault::Silence)) {
        thread::sleep(Duration::from_secs(60));
        return Ok(());
    }
    write_reply(stream, &request, &reply, fault.as_ref())
}

fn next_fault(state: &mut State, request: &Seen) -> Option<Fault> {
    let found = state.faults.iter_mut().find(|(method, part, times, _)| {
        *times > 0 && *method == request.method && request.path.contains(part.as_str())
    })?;
    found.2 -= 1;
    Some(found.3.clone())
}

fn reply_to(state: &State, request: &Seen, body: &str, fault: Option<&Fault>) -> Reply {
    match fault {
        Some(Fault::Status(status, code)) => return Reply::error(*status, code),
        Some(Fault::Body(body)) => return Reply::new(200, body.clone()),
        _ => {}
    }
    let path = request.path.split('?').next().unwrap_or_default();
    // A branch's slashes come encoded, so that it is one segment.
    let parts: Vec<String> = path
        .trim_matches('/')
        .split('/')
        .map(|part| part.replace("%2F", "/"))
        .collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    if let ["storage", digest] = parts[..] {
        let ignore_range = matches!(fault, Some(Fault::IgnoreRange));
        return state.blobs.get(digest).map_or_else(
            || Reply::error(404, "EntryNotFound"),
            |bytes| bytes_reply(bytes, request.range.as_deref().filter(|_| !ignore_range)),
        );
    }
    if state.token.is_some()
        && request.authorization != state.token.as_ref().map(|token| format!("Bearer {token}"))
    {
        return Reply::error(401, "GatedRepo");
    }
    match parts[..] {
        ["api", "models", owner, name, "revision", revision] => {
            info(state, &format!("{owner}/{name}"), revision)
        }
        ["api", "models", owner, name, "paths-info", revision] => {
            paths_info(state, &format!("{owner}/{name}"), revision, body)
        }
        [owner, name, "resolve", revision, file] => {
            resolve(state, &format!("{owner}/{name}"), revision, file, request)
        }
        _ => Reply::error(404, "RepoNotFound"),
    }
}

fn files_at<'a>(
    state: &'a State,
    model: &str,
    revision: &str,
) -> Result<(String, &'a BTreeMap<String, Vec<u8>>), Reply> {
    if !state.commits.keys().any(|(known, _)| known == model) {
        return Err(Reply::error(404, "RepoNotFound"));
    }
    let branch = (model.to_owned(), revision.to_owned());
    let commit = state
        .refs
        .get(&branch)
        .cloned()
        .unwrap_or_else(|| revision.to_owned());
    let files = state.commits.get(&(model.to_owned(), commit.clone()));
    files
        .map(|files| (commit, files))
        .ok_or_else(|| Reply::error(404, "RevisionNotFound"))
}

fn info(state: &State, model: &str, revision: &str) -> Reply {
    if let Some(new) = state.renamed.get(model) {
        return Reply::new(307, "")
            .with("Location", format!("/api/models/{new}/revision/{revision}"));
    }
    let (commit, files) = match files_at(state, model, revision) {
        Ok(found) => found,
        Err(reply) => return reply,
    };
    let siblings: Vec<_> = files
        .keys()
        .map(|name| serde_json::json!({ "rfilename": name }))
        .collect();
    let body = serde_json::json!({ "_id": "1", "id": model, "sha": commit, "siblings": siblings });
    Reply::new(200, body.to_string()).with("Content-Type", "application/json")
}

fn paths_info(state: &State, model: &str, revision: &str, body: &str) -> Reply {
    let (_, files) = match files_at(state, model, revision) {
        Ok(found) => found,
        Err(reply) => return reply,
    };
    let wanted: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let named = |name: &str| {
        wanted["paths"]
            .as_array()
            .is_some_and(|paths| paths.iter().any(|path| path == name))
    };
    let entries: Vec<_> = files
        .iter()
        .filter(|(name, _)| named(name))
        .map(|(name, bytes)| {
            let lfs = is_large(name).then(|| serde_json::json!({ "size": bytes.len(), "sha256": sha256(bytes), "pointerSize": 134 }));
            serde_json::json!({ "type": "file", "oid": "0", "size": bytes.len(), "path": name, "lfs": lfs })
        })
        .collect();
    Reply::new(200, serde_json::Value::from(entries).to_string())
        .with("Content-Type", "application/json")
}

fn resolve(state: &State, model: &str, revision: &str, file: &str, request: &Seen) -> Reply {
    if let Some(new) = state.renamed.get(model) {
        return Reply::new(307, "").with("Location", format!("/{new}/resolve/{revision}/{file}"));
    }
    let (commit, files) = match files_at(state, model, revision) {
        Ok(found) => found,
        Err(reply) => return reply,
    };
    let Some(bytes) = files.get(file) else {
        return Reply::error(404, "EntryNotFound").with("X-Repo-Commit", commit);
    };
    let digest = sha256(bytes);
    if is_large(file) {
        let storage = state.storage.as_deref().unwrap_or_default();
        let reply = Reply::new(302, "Found. Redirecting")
            .with("Location", format!("{storage}/storage/{digest}"))
            .with("X-Repo-Commit", commit)
            .with("X-Linked-Etag", format!("\"{digest}\""))
            .with("X-Linked-Size", bytes.len().to_string());
        return if state.chunk_store {
            reply.with("X-Xet-Hash", digest)
        } else {
            reply
        };
    }
    bytes_reply(bytes, request.range.as_deref())
        .with("X-Repo-Commit", commit)
        // A small file's etag is a Git object id, which has 40 digits.
        .with("ETag", format!("\"{}\"", &digest[..40]))
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}

fn bytes_reply(bytes: &[u8], range: Option<&str>) -> Reply {
    let parsed = range.and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse::<usize>().ok()?, last.parse::<usize>().ok()?))
    });
    match parsed {
        Some((first, last)) if first <= last && last < bytes.len() => {
            Reply::new(206, &bytes[first..=last]).with(
                "Content-Range",
                format!("bytes {first}-{last}/{}", bytes.len()),
            )
        }
        Some(_) => Reply::new(416, ""),
        None => Reply::new(200, bytes),
    }
}

fn read_request(reader: &mut impl BufRead) -> io::Result<(Seen, String)> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let mut seen = Seen {
        method,
        path,
        authorization: None,
        range: None,
    };
    let mut length = 0;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
            break;
        }
        let Some((name, value)) = header.split_once(':') else {
            continue;
        };
        let value = value.trim().to_owned();
        match name.to_ascii_lowercase().as_str() {
            "authorization" => seen.authorization = Some(value),
            "range" => seen.range = Some(value),
            "content-length" => length = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((seen, String::from_utf8_lossy(&body).into_owned()))
}

fn write_reply(
    mut stream: &TcpStream,
    request: &Seen,
    reply: &Reply,
    fault: Option<&Fault>,
) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {} -\r\nConnection: close\r\n", reply.status);
    head.push_str(&format!("Content-Length: {}\r\n", reply.body.len()));
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    if request.method != "HEAD" {
        let end = match fault {
            Some(Fault::CutAfter(bytes)) => reply.body.len().min(*bytes),
            _ => reply.body.len(),
        };
        stream.write_all(&reply.body[..end])?;
    }
    stream.flush()
}
