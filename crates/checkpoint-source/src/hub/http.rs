//! Requests to the hub: JSON, headers of a file, and downloads that resume and retry.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use hf_hub::Repo;
use model_conventions::sha256_file;
use serde::de::DeserializeOwned;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::{Agent, Body};

use super::{HubError, HubOptions, OnTransfer, Transfer};

/// Longest pause that a server may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(300);
const MAX_REDIRECTS: u32 = 10;

/// What a request is about, for error messages.
pub(super) struct Subject<'a> {
    pub(super) repo: &'a Repo,
    pub(super) page: String,
    pub(super) command: String,
}

/// What the hub says of a file before it sends it.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) etag: String,
    pub(super) bytes: u64,
}

impl Head {
    /// The etag of a large file is its SHA-256; that of a small one is a git hash.
    pub(super) fn sha256(&self) -> Option<String> {
        let hex = self.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        (self.etag.len() == 64 && hex).then(|| self.etag.to_ascii_lowercase())
    }
}

pub(super) struct Download<'a> {
    pub(super) url: &'a str,
    /// Name for messages.
    pub(super) file: &'a str,
    /// Grows as bytes arrive and survives interruptions.
    pub(super) part: &'a Path,
    pub(super) bytes: u64,
    pub(super) sha256: Option<String>,
}

impl Download<'_> {
    fn io_error(&self, source: io::Error) -> HubError {
        let path = self.part.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull => HubError::DiskFull {
                path,
                bytes: self.bytes,
            },
            _ => HubError::Cache { path, source },
        }
    }
}

#[derive(Debug)]
pub(super) struct Http {
    /// Follows redirects; the token goes along within the hub, not to another host.
    following: Agent,
    /// Shows redirects, whose headers name the file.
    direct: Agent,
    authorization: Option<String>,
    tries: u32,
    backoff: Duration,
}

/// How one try ended.
enum Failure {
    /// Worth another try, after at least this long.
    Passing {
        error: Box<HubError>,
        wait: Option<Duration>,
    },
    Final(Box<HubError>),
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::Final(Box::new(error))
    }
}

impl Http {
    pub(super) fn new(options: &HubOptions) -> Self {
        let agent = |redirects: u32| -> Agent {
            Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(redirects)
                .max_redirects_will_error(redirects > 0)
                .redirect_auth_headers(RedirectAuthHeaders::SameHost)
                .timeout_connect(Some(options.timeout))
                .timeout_recv_response(Some(options.timeout))
                .timeout_per_read(Some(options.timeout))
                .user_agent(concat!("neox-core/", env!("CARGO_PKG_VERSION")))
                .build()
                .into()
        };
        Self {
            following: agent(MAX_REDIRECTS),
            direct: agent(0),
            authorization: options.token.as_ref().map(|token| token.header()),
            tries: options.tries.max(1),
            backoff: options.backoff,
        }
    }

    pub(super) fn json<T: DeserializeOwned>(
        &self,
        url: &str,
        subject: &Subject<'_>,
    ) -> Result<T, HubError> {
        self.retrying(|tries| {
            let request = self.with_token(self.following.get(url));
            let mut response = self.checked(request.call(), url, subject, tries)?;
            let text = response
                .body_mut()
                .read_to_string()
                .map_err(|err| passing(err, url, subject))?;
            serde_json::from_str(&text).map_err(|err| {
                Failure::from(HubError::Protocol {
                    url: without_query(url),
                    problem: err.to_string(),
                })
            })
        })
    }

    /// Etag and size of a file. The redirect to a large file's storage carries both; redirects
    /// within the hub are followed.
    pub(super) fn head(&self, url: &str, subject: &Subject<'_>) -> Result<Head, HubError> {
        self.retrying(|tries| {
            let mut at = url.to_owned();
            for _ in 0..MAX_REDIRECTS {
                // Compressed answers would have another length.
                let request = self
                    .with_token(self.direct.head(&at))
                    .header("Accept-Encoding", "identity");
                let response = self.checked(request.call(), &at, subject, tries)?;
                let headers = response.headers();
                let text = |name: &str| Some(headers.get(name)?.to_str().ok()?.trim());
                let relative = text("location").filter(|to| to.starts_with('/'));
                if response.status().is_redirection()
                    && let Some(to) = relative
                {
                    at = format!("{}{to}", origin_of(&at));
                    continue;
                }
                return Ok(read_head(headers, response.status(), url)?);
            }
            Err(Failure::from(HubError::Protocol {
                url: without_query(url),
                problem: format!("more than {MAX_REDIRECTS} redirects"),
            }))
        })
    }

    /// Brings `job.part` to its full size and checks it. Tries that bring bytes do not count.
    pub(super) fn download(
        &self,
        job: &Download<'_>,
        subject: &Subject<'_>,
        on_transfer: OnTransfer<'_>,
    ) -> Result<(), HubError> {
        let io_error = |source| job.io_error(source);
        let mut part = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(job.part)
            .map_err(io_error)?;
        let mut done = part.seek(SeekFrom::End(0)).map_err(io_error)?;
        if done > job.bytes {
            done = restart(&mut part).map_err(io_error)?;
        }
        let mut tries = 0;
        while done < job.bytes {
            let before = done;
            let result = self.download_some(job, subject, &mut part, &mut done, on_transfer, tries);
            if done > before {
                tries = 0;
            }
            match result {
                Ok(()) => {}
                Err(Failure::Final(error)) => return Err(*error),
                Err(Failure::Passing { error, wait }) => {
                    tries += 1;
                    if tries >= self.tries {
                        return Err(*error);
                    }
                    tracing::debug!(
                        file = job.file,
                        done,
                        tries,
                        "download interrupted: {error}"
                    );
                    std::thread::sleep(self.pause(tries, wait));
                }
            }
        }
        part.sync_all().map_err(io_error)?;
        drop(part);
        if let Some(expected) = &job.sha256 {
            let (_, found) = sha256_file(job.part).map_err(io_error)?;
            if !found.eq_ignore_ascii_case(expected) {
                std::fs::remove_file(job.part).map_err(io_error)?;
                return Err(HubError::Hash {
                    file: job.file.to_owned(),
                    expected: expected.clone(),
                    found,
                });
            }
        }
        Ok(())
    }

    /// One request: asks for the rest of the file and appends what comes.
    fn download_some(
        &self,
        job: &Download<'_>,
        subject: &Subject<'_>,
        part: &mut File,
        done: &mut u64,
        on_transfer: OnTransfer<'_>,
        tries: u32,
    ) -> Result<(), Failure> {
        let cache = |source| job.io_error(source);
        let mut request = self
            .with_token(self.following.get(job.url))
            .header("Accept-Encoding", "identity");
        if *done > 0 {
            request = request.header("Range", format!("bytes={done}-"));
        }
        let response = request.call();
        if let Ok(response) = &response
            && response.status() == StatusCode::RANGE_NOT_SATISFIABLE
            && *done > 0
        {
            *done = restart(part).map_err(cache)?;
            return Ok(()); // the next request asks for all of it
        }
        let response = self.checked(response, job.url, subject, tries)?;
        let start = match response.status() {
            StatusCode::PARTIAL_CONTENT => range_start(response.headers()),
            _ => Some(0), // the server ignored the range
        };
        if start != Some(*done) {
            *done = restart(part).map_err(cache)?;
            if start != Some(0) {
                return Err(Failure::Passing {
                    error: Box::new(HubError::Protocol {
                        url: without_query(job.url),
                        problem: "another part of the file than was asked for".into(),
                    }),
                    wait: None,
                });
            }
        }
        part.seek(SeekFrom::Start(*done)).map_err(cache)?;
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) if *done < job.bytes => {
                    let error = io::Error::from(io::ErrorKind::UnexpectedEof);
                    return Err(passing(error, job.url, subject));
                }
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                Err(err) => return Err(passing(err, job.url, subject)),
            };
            if *done + n as u64 > job.bytes {
                restart(part).map_err(cache)?;
                return Err(Failure::from(HubError::Protocol {
                    url: without_query(job.url),
                    problem: format!("more than the {} bytes announced", job.bytes),
                }));
            }
            part.write_all(&buffer[..n]).map_err(cache)?;
            *done += n as u64;
            on_transfer(&Transfer {
                file: job.file,
                done: *done,
                total: job.bytes,
            });
        }
    }

    fn with_token<T>(&self, request: ureq::RequestBuilder<T>) -> ureq::RequestBuilder<T> {
        match &self.authorization {
            Some(value) => request.header("Authorization", value),
            None => request,
        }
    }

    fn retrying<T>(
        &self,
        mut attempt: impl FnMut(u32) -> Result<T, Failure>,
    ) -> Result<T, HubError> {
        let mut tries = 0;
        loop {
            match attempt(tries) {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(*error),
                Err(Failure::Passing { error, wait }) => {
                    tries += 1;
                    if tries >= self.tries {
                        return Err(*error);
                    }
                    std::thread::sleep(self.pause(tries, wait));
                }
            }
        }
    }

    /// What the server asks for, else a pause that doubles with every try.
    fn pause(&self, tries: u32, asked: Option<Duration>) -> Duration {
        let own = self.backoff.saturating_mul(1 << (tries - 1).min(16));
        asked.unwrap_or(own).min(MAX_PAUSE)
    }

    /// Sorts answers into good, worth another try, and final.
    fn checked(
        &self,
        response: Result<Response<Body>, ureq::Error>,
        url: &str,
        subject: &Subject<'_>,
        tries: u32,
    ) -> Result<Response<Body>, Failure> {
        let response = response.map_err(|err| match err {
            // Without a network there is nothing to wait for.
            ureq::Error::HostNotFound => Failure::from(network(err, url, subject)),
            err => passing(err, url, subject),
        })?;
        let status = response.status();
        if status.is_success() || status.is_redirection() {
            return Ok(response);
        }
        let repo = subject.repo.url();
        let code = response
            .headers()
            .get("x-error-code")
            .and_then(|value| value.to_str().ok())
            .unwrap_or("");
        Err(match status.as_u16() {
            408 | 429 | 500 | 502 | 503 | 504 => Failure::Passing {
                wait: retry_after(response.headers()),
                error: Box::new(HubError::Busy {
                    url: without_query(url),
                    status: status.as_u16(),
                    tries: tries + 1,
                }),
            },
            401 | 403 => Failure::from(HubError::Refused {
                repo,
                status: status.as_u16(),
                page: subject.page.clone(),
                with_token: self.authorization.is_some(),
            }),
            404 if code == "RevisionNotFound" => Failure::from(HubError::NoRevision {
                repo,
                revision: subject.repo.revision().to_owned(),
                nearest: Vec::new(),
            }),
            404 if code == "RepoNotFound" => Failure::from(HubError::NoRepo {
                repo: subject.repo.url(),
                page: subject.page.clone(),
            }),
            status => Failure::from(HubError::Status {
                url: without_query(url),
                status,
            }),
        })
    }
}

fn network(
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    url: &str,
    subject: &Subject<'_>,
) -> HubError {
    HubError::Network {
        url: without_query(url),
        command: subject.command.clone(),
        source: source.into(),
    }
}

fn passing(
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    url: &str,
    subject: &Subject<'_>,
) -> Failure {
    Failure::Passing {
        error: Box::new(network(source, url, subject)),
        wait: None,
    }
}

/// Empties an unfinished download.
fn restart(part: &mut File) -> io::Result<u64> {
    part.set_len(0)?;
    part.seek(SeekFrom::Start(0))
}

/// Queries of storage addresses hold signatures.
fn without_query(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or(url).to_owned()
}

/// `https://host:port` of an address.
fn origin_of(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find('/').map_or(url.len(), |at| host + at);
    &url[..end]
}

fn read_head(headers: &HeaderMap, status: StatusCode, url: &str) -> Result<Head, HubError> {
    let protocol = |problem: &str| HubError::Protocol {
        url: without_query(url),
        problem: problem.to_owned(),
    };
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let etag = text("x-linked-etag")
        .or_else(|| text("etag"))
        .map(|etag| etag.trim().trim_start_matches("W/").trim_matches('"'))
        .ok_or_else(|| protocol("no etag"))?;
    // It becomes a file name.
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if etag.is_empty() || etag.len() > 128 || !etag.chars().all(plain) {
        return Err(protocol("an etag that is not a plain name"));
    }
    let length = text("x-linked-size").or_else(|| {
        // the length of a redirect is that of its own text
        text("content-length").filter(|_| !status.is_redirection())
    });
    let bytes = length
        .and_then(|length| length.trim().parse().ok())
        .ok_or_else(|| protocol("no size"))?;
    Ok(Head {
        etag: etag.to_owned(),
        bytes,
    })
}

/// Seconds of `Retry-After`; the form with a date is left to the usual pause.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get("retry-after")?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}

/// First byte of `Content-Range: bytes 100-199/200`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get("content-range")?.to_str().ok()?;
    text.trim()
        .strip_prefix("bytes ")?
        .split('-')
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_unless_the_server_asks() {
        let http = Http::new(&HubOptions::new("cache".into()));
        let pauses: Vec<u128> = (1..5).map(|n| http.pause(n, None).as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000]);
        assert_eq!(http.pause(3, Some(Duration::from_secs(7))).as_secs(), 7);
        assert_eq!(http.pause(60, Some(Duration::MAX)), MAX_PAUSE);
        assert_eq!(http.pause(60, None), MAX_PAUSE);
    }

    #[test]
    fn headers_are_read() {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", "12".parse().unwrap());
        headers.insert("content-range", "bytes 100-199/200".parse().unwrap());
        assert_eq!(retry_after(&headers), Some(Duration::from_secs(12)));
        assert_eq!(range_start(&headers), Some(100));
        headers.insert("etag", "W/\"abc\"".parse().unwrap());
        headers.insert("content-length", "5".parse().unwrap());
        let head = read_head(&headers, StatusCode::OK, "http://hub/x").unwrap();
        assert_eq!((head.etag.as_str(), head.bytes), ("abc", 5));
        headers.insert("x-linked-etag", "\"../../escape\"".parse().unwrap());
        let err = read_head(&headers, StatusCode::OK, "http://hub/x?sig=1").unwrap_err();
        assert_eq!(
            err.to_string(),
            "unexpected answer from `http://hub/x`: an etag that is not a plain name"
        );
    }

    #[test]
    fn addresses_are_taken_apart() {
        assert_eq!(origin_of("http://127.0.0.1:80/a/b"), "http://127.0.0.1:80");
        assert_eq!(
            without_query("https://cdn/x?Signature=secret"),
            "https://cdn/x"
        );
    }
}
