//! A server on 127.0.0.1 that speaks enough of the hub's protocol to fetch models,
//! and fails in the ways the hub can fail.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test server stops at the first surprise"
)]
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use checkpoint_source::HubOptions;
use model_conventions::sha256_file;
use serde_json::json;

pub(crate) const TOKEN: &str = "hf_verysecret";

/// What goes wrong with the next answer whose path contains a text.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// This status with these headers.
    Status(u16, &'static str),
    /// The connection closes after so many bytes of the body.
    DropAfter(usize),
    /// Nothing more comes after so many bytes of the body.
    StallAfter(usize),
    /// The body trickles.
    Slow,
    /// The whole file whatever the range.
    IgnoreRange,
    /// One bit of the body is another.
    FlipBit,
}

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) with_token: bool,
}

/// Revision name to file name to content.
pub(crate) type Revisions = BTreeMap<String, BTreeMap<String, PathBuf>>;

#[derive(Default)]
struct State {
    /// By `models/owner/name`.
    repos: BTreeMap<String, Revisions>,
    faults: Vec<(String, Fault)>,
    log: Vec<Request>,
}

#[derive(Clone)]
pub(crate) struct LocalHub {
    pub(crate) endpoint: String,
    state: Arc<Mutex<State>>,
}

pub(crate) fn tiny(step: &str) -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../examples/data/tiny-neox"
    ))
    .join(step)
}

/// tiny-neox as a repository with its steps as revisions, and files that no one should fetch.
pub(crate) fn tiny_revisions() -> Revisions {
    let mut revisions = Revisions::new();
    for step in [
        "step0", "step1", "step64", "step512", "step1000", "step2000", "step4000",
    ] {
        let mut files = BTreeMap::new();
        for name in ["config.json", "model.safetensors", "pytorch_model.bin"] {
            if tiny(step).join(name).exists() {
                files.insert(name.to_owned(), tiny(step).join(name));
            }
        }
        files.insert("tokenizer.json".into(), tiny("tokenizer.json"));
        files.insert("flax_model.msgpack".into(), tiny("tokenizer.json"));
        files.insert(".gitattributes".into(), tiny(step).join("config.json"));
        revisions.insert(step.to_owned(), files);
    }
    revisions
}

/// The commit that a revision of this server points to.
pub(crate) fn commit_of(revision: &str) -> String {
    let hex: String = revision.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex:0<40}")[..40].to_owned()
}

impl LocalHub {
    pub(crate) fn start(repos: impl IntoIterator<Item = (&'static str, Revisions)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = Self {
            endpoint: format!("http://{}", listener.local_addr().unwrap()),
            state: Arc::new(Mutex::new(State {
                repos: repos
                    .into_iter()
                    .map(|(name, revisions)| (name.to_owned(), revisions))
                    .collect(),
                ..State::default()
            })),
        };
        let server = hub.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let server = server.clone();
                // A client that goes away mid-answer is part of the tests.
                std::thread::spawn(move || stream.map(|stream| server.serve(stream)));
            }
        });
        hub
    }

    /// One public repository, `pico/tiny-neox`.
    pub(crate) fn tiny() -> Self {
        Self::start([("models/pico/tiny-neox", tiny_revisions())])
    }

    pub(crate) fn fail_next(&self, path: &str, fault: Fault) {
        self.state
            .lock()
            .unwrap()
            .faults
            .push((path.to_owned(), fault));
    }

    /// The requests since the last call.
    pub(crate) fn take_log(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }

    /// Options for a client with an empty environment, quick to lose patience.
    pub(crate) fn options(&self, cache: &Path) -> HubOptions {
        let mut options = HubOptions::new(cache.to_owned());
        options.endpoint = self.endpoint.clone();
        options.backoff = Duration::from_millis(1);
        options
    }

    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split_whitespace();
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let mut request = Request {
            method: method.to_owned(),
            path: path.to_owned(),
            range: None,
            with_token: false,
        };
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim().split_once(':') else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "range" => request.range = Some(value.trim().to_owned()),
                "authorization" => request.with_token = value.trim() == format!("Bearer {TOKEN}"),
                _ => {}
            }
        }
        let fault = {
            let mut state = self.state.lock().unwrap();
            state.log.push(request.clone());
            let found = state
                .faults
                .iter()
                .position(|(part, _)| request.path.contains(part.as_str()));
            found.map(|index| state.faults.remove(index).1)
        };
        self.answer(stream, &request, fault)
    }

    fn answer(
        &self,
        mut stream: TcpStream,
        request: &Request,
        fault: Option<Fault>,
    ) -> std::io::Result<()> {
        if let Some(Fault::Status(status, headers)) = fault {
            return write!(
                stream,
                "HTTP/1.1 {status} Fault\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
        let error = |stream: &mut TcpStream, status: u16, code: &str| {
            write!(
                stream,
                "HTTP/1.1 {status} Error\r\nX-Error-Code: {code}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
        };
        if request.path.contains("old/tiny-neox") {
            // a repository that was renamed
            return write!(
                stream,
                "HTTP/1.1 307 Moved\r\nLocation: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                request.path.replace("old/", "pico/")
            );
        }
        let path = request.path.split('?').next().unwrap_or("");
        if let Some(sha256) = path.strip_prefix("/cdn/") {
            let file = self
                .find_blob(sha256)
                .expect("the server gave this address");
            return send_file(&mut stream, request, &file, fault);
        }
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (repo, rest) = match parts.as_slice() {
            ["api", kind, owner, name, rest @ ..] => {
                (format!("{kind}/{owner}/{name}"), ("api", rest))
            }
            [owner, name, rest @ ..] => (format!("models/{owner}/{name}"), ("", rest)),
            _ => return error(&mut stream, 404, "RepoNotFound"),
        };
        if repo.contains("gated") && !request.with_token {
            return error(&mut stream, 401, "GatedRepo");
        }
        let revisions = self.state.lock().unwrap().repos.get(&repo).cloned();
        let Some(revisions) = revisions else {
            return error(&mut stream, 404, "RepoNotFound");
        };
        match rest {
            ("api", ["refs"]) => {
                let branches: Vec<_> = revisions
                    .keys()
                    .map(|name| json!({"name": name, "ref": format!("refs/heads/{name}"), "targetCommit": commit_of(name)}))
                    .collect();
                send_json(
                    &mut stream,
                    &json!({"branches": branches, "converts": [], "tags": []}),
                )
            }
            ("api", ["revision", revision]) => {
                let revision = revision.replace("%2F", "/");
                let Some(files) = revisions.get(&revision) else {
                    return error(&mut stream, 404, "RevisionNotFound");
                };
                let siblings: Vec<_> = files
                    .iter()
                    .map(|(name, path)| {
                        let (bytes, sha256) = sha256_file(path).unwrap();
                        match is_large(name) {
                            true => json!({"rfilename": name, "size": bytes, "lfs": {"sha256": sha256, "size": bytes}}),
                            false => json!({"rfilename": name, "size": bytes, "blobId": &sha256[..40]}),
                        }
                    })
                    .collect();
                send_json(
                    &mut stream,
                    &json!({"sha": commit_of(&revision), "siblings": siblings}),
                )
            }
            (_, ["resolve", commit, file @ ..]) => {
                let file = file.join("/");
                let revision = revisions
                    .iter()
                    .find(|(name, _)| commit_of(name) == *commit);
                let Some(path) = revision.and_then(|(_, files)| files.get(&file)) else {
                    return error(&mut stream, 404, "EntryNotFound");
                };
                let (bytes, sha256) = sha256_file(path).unwrap();
                if is_large(&file) {
                    return write!(
                        stream,
                        "HTTP/1.1 302 Found\r\nLocation: {}/cdn/{sha256}?Signature=alsosecret\r\n\
                         X-Repo-Commit: {commit}\r\nX-Linked-Etag: \"{sha256}\"\r\nX-Linked-Size: {bytes}\r\n\
                         ETag: \"{}\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                        // another host, as large files have on the hub
                        self.endpoint.replace("127.0.0.1", "localhost"),
                        &sha256[..32]
                    );
                }
                send_file(&mut stream, request, path, fault)
            }
            _ => error(&mut stream, 404, ""),
        }
    }

    fn find_blob(&self, sha256: &str) -> Option<PathBuf> {
        let state = self.state.lock().unwrap();
        let mut files = state
            .repos
            .values()
            .flat_map(|r| r.values())
            .flat_map(|f| f.values());
        files
            .find(|path| sha256_file(path).unwrap().1 == sha256)
            .cloned()
    }
}

fn is_large(name: &str) -> bool {
    [".safetensors", ".bin", ".parquet", ".msgpack"]
        .iter()
        .any(|end| name.ends_with(end))
}

fn send_json(stream: &mut TcpStream, value: &serde_json::Value) -> std::io::Result<()> {
    let text = value.to_string();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    )
}

fn send_file(
    stream: &mut TcpStream,
    request: &Request,
    path: &Path,
    fault: Option<Fault>,
) -> std::io::Result<()> {
    let mut body = std::fs::read(path)?;
    let (total, etag) = (body.len(), &sha256_file(path)?.1[..40]);
    let asked = request
        .range
        .as_ref()
        .and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .split('-')
                .next()?
                .parse::<usize>()
                .ok()
        })
        .filter(|_| !matches!(fault, Some(Fault::IgnoreRange)));
    if asked.is_some_and(|from| from >= total) {
        return write!(
            stream,
            "HTTP/1.1 416 Range\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    if let Some(from) = asked {
        body.drain(..from);
        write!(
            stream,
            "HTTP/1.1 206 Partial\r\nContent-Range: bytes {from}-{}/{total}\r\n",
            total - 1
        )?;
    } else {
        write!(stream, "HTTP/1.1 200 OK\r\n")?;
    }
    write!(
        stream,
        "ETag: \"{etag}\"\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    if request.method == "HEAD" {
        return Ok(());
    }
    match fault {
        Some(Fault::DropAfter(n)) => stream.write_all(&body[..n]),
        Some(Fault::StallAfter(n)) => {
            stream.write_all(&body[..n])?;
            std::thread::sleep(Duration::from_secs(5));
            Ok(())
        }
        Some(Fault::Slow) => body.chunks(body.len() / 20 + 1).try_for_each(|chunk| {
            std::thread::sleep(Duration::from_millis(5));
            stream.write_all(chunk)
        }),
        Some(Fault::FlipBit) => {
            body[total / 2] ^= 1;
            stream.write_all(&body)
        }
        _ => stream.write_all(&body),
    }
}
