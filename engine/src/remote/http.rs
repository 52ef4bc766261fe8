//! Requests: redirects followed here, so that a token stays with its host; what passes is told from what
//! does not, and tried again.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use ureq::Body;
use ureq::http::{HeaderMap, Method, Response, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use super::{FetchError, Watch};

const REDIRECTS: usize = 10;
/// How often the same thing may fail in a row.
const RETRIES: u32 = 5;
/// The first pause after a failure; it doubles each time.
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 5 } else { 500 });
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Whoever wants more patience than this is told to the user instead.
const PATIENCE: Duration = Duration::from_secs(600);
/// The longest list of files that is read: a hundred thousand files take about 30 MB.
const JSON_LIMIT: u64 = 128 << 20;

/// A secret for one host.
pub(super) struct Token {
    /// `scheme://host:port`.
    origin: String,
    secret: String,
}

/// Sends requests.
pub(super) struct Client {
    /// Made for the first request: certificates take longer to read than many a run.
    agent: OnceLock<ureq::Agent>,
    authorities: Option<PathBuf>,
    token: Option<Token>,
}

/// What a request came to, behind all redirects.
pub(super) struct Answer {
    pub(super) status: u16,
    /// The headers of every answer on the way, the first first.
    hops: Vec<HeaderMap>,
    body: Body,
}

/// Why a request came to nothing.
#[derive(Debug)]
pub(super) enum Problem {
    /// It may work later; after `wait`, if the server says so.
    Passing { reason: String, wait: Option<Duration> },
    /// The server refuses, with a status and perhaps a word.
    Refused { status: u16, code: Option<String> },
    /// It will not work.
    Lasting(String),
    /// What reads the answer failed, or was asked to stop.
    Reader(FetchError),
}

impl From<FetchError> for Problem {
    fn from(error: FetchError) -> Self {
        Self::Reader(error)
    }
}

impl Token {
    /// None where the token would go over the net in the clear, or cannot be a token.
    pub(super) fn new(endpoint: &str, secret: &str) -> Option<Self> {
        let uri: Uri = endpoint.parse().ok()?;
        let is_safe = uri.scheme_str() == Some("https")
            || matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
        let secret = secret.trim();
        let is_token = !secret.is_empty() && secret.bytes().all(|byte| byte.is_ascii_graphic());
        (is_safe && is_token).then_some(Self { origin: origin(&uri)?, secret: secret.to_owned() })
    }
}

impl Client {
    /// With the certificate authorities of a PEM file, or Mozilla's.
    pub(super) fn new(token: Option<Token>, authorities: Option<&Path>) -> Self {
        Self { agent: OnceLock::new(), authorities: authorities.map(Path::to_owned), token }
    }

    fn agent(&self) -> &ureq::Agent {
        self.agent.get_or_init(|| {
            let authorities = self.authorities.as_deref().and_then(read_authorities);
            let config = ureq::Agent::config_builder()
                .tls_config(TlsConfig::builder().root_certs(authorities.unwrap_or(RootCerts::WebPki)).build())
                .http_status_as_error(false)
                .max_redirects(0)
                .timeout_connect(Some(Duration::from_secs(30)))
                .timeout_recv_response(Some(Duration::from_secs(120)))
                .timeout_per_read(Some(Duration::from_secs(60)))
                .user_agent(concat!("pipe/", env!("CARGO_PKG_VERSION")))
                .build();
            config.into()
        })
    }

    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Sends a request and follows redirects. An answer is one of success, or 416.
    pub(super) fn open(
        &self,
        method: &Method,
        url: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer, Problem> {
        let mut url: Uri =
            url.parse().map_err(|error| Problem::Lasting(format!("`{url}` is no address: {error}")))?;
        let mut hops = Vec::new();
        for _ in 0..=REDIRECTS {
            let response = self.send(method, &url, headers)?;
            let status = response.status().as_u16();
            let (parts, body) = response.into_parts();
            let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
            match status {
                200..=299 | 416 => {
                    hops.push(parts.headers);
                    return Ok(Answer { status, hops, body });
                }
                301 | 302 | 303 | 307 | 308 => {
                    let target = header("location").and_then(|location| join(&url, location));
                    let Some(target) = target else {
                        return Err(Problem::Lasting(format!("{} redirects to nowhere", host(&url))));
                    };
                    if url.scheme_str() == Some("https") && target.scheme_str() != Some("https") {
                        let reason = format!("{} redirects to an address without encryption", host(&url));
                        return Err(Problem::Lasting(reason));
                    }
                    hops.push(parts.headers);
                    url = target;
                }
                408 | 425 | 429 | 500..=599 => {
                    let wait = header("retry-after").and_then(retry_after);
                    let reason = format!("{} answered {}", host(&url), parts.status);
                    return Err(Problem::Passing { reason, wait });
                }
                _ => {
                    let code = header("x-error-code").map(str::to_owned);
                    return Err(Problem::Refused { status, code });
                }
            }
        }
        Err(Problem::Lasting(format!("more than {REDIRECTS} redirects, the last to {}", host(&url))))
    }

    fn send(&self, method: &Method, url: &Uri, headers: &[(&str, &str)]) -> Result<Response<Body>, Problem> {
        let mut request = ureq::http::Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = self.token.as_ref().filter(|token| origin(url).as_ref() == Some(&token.origin)) {
            request = request.header("authorization", format!("Bearer {}", token.secret));
        }
        let request = request.body(()).map_err(|error| Problem::Lasting(format!("{url}: {error}")))?;
        self.agent().run(request).map_err(|error| {
            let reason = format!("{}: {error}", host(url));
            match error {
                ureq::Error::Io(cause) if cause.kind() == std::io::ErrorKind::InvalidData => {
                    Problem::Lasting(reason)
                }
                ureq::Error::Io(_)
                | ureq::Error::Timeout(_)
                | ureq::Error::HostNotFound
                | ureq::Error::ConnectionFailed
                | ureq::Error::Protocol(_) => Problem::Passing { reason, wait: None },
                _ => Problem::Lasting(reason),
            }
        })
    }

    /// Reads an answer of JSON, however often it takes.
    pub(super) fn json(&self, url: &str, watch: &Watch<'_>) -> Result<serde_json::Value, Problem> {
        patiently(watch, || {
            let mut text = Vec::new();
            let answer = self.open(&Method::GET, url, &[])?;
            let read = answer.reader().take(JSON_LIMIT + 1).read_to_end(&mut text);
            read.map_err(|error| Problem::Passing { reason: error.to_string(), wait: None })?;
            if text.len() as u64 > JSON_LIMIT {
                return Err(Problem::Lasting(format!("{url} answers with more than {JSON_LIMIT} bytes")));
            }
            serde_json::from_slice(&text).map_err(|error| {
                Problem::Lasting(format!("{url} answers with something else than JSON: {error}"))
            })
        })
    }

    /// Asks for the headers of an answer, however often it takes.
    pub(super) fn head(&self, url: &str, watch: &Watch<'_>) -> Result<Answer, Problem> {
        patiently(watch, || self.open(&Method::HEAD, url, &[]))
    }
}

impl Answer {
    /// A header of the last answer.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.hops.last()?.get(name)?.to_str().ok()
    }

    /// The length of the body.
    pub(super) fn length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    /// Where the body begins in the whole, and how long the whole is, if it is a part.
    pub(super) fn range(&self) -> Option<(u64, Option<u64>)> {
        let (range, total) = self.header("content-range")?.strip_prefix("bytes ")?.split_once('/')?;
        let (start, _) = range.split_once('-')?;
        Some((start.trim().parse().ok()?, total.trim().parse().ok()))
    }

    pub(super) fn reader(self) -> impl std::io::Read {
        self.body.into_with_config().limit(u64::MAX).reader()
    }
}

/// The certificates of a PEM file; none if there are none.
fn read_authorities(path: &Path) -> Option<RootCerts> {
    let text = std::fs::read(path).ok()?;
    let certificates: Vec<_> = parse_pem(&text)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    (!certificates.is_empty()).then(|| RootCerts::new_with_certs(&certificates))
}

/// Tries until it works, fails for good, or has failed too often in a row.
pub(super) fn patiently<T>(
    watch: &Watch<'_>,
    mut attempt: impl FnMut() -> Result<T, Problem>,
) -> Result<T, Problem> {
    let mut failures = 0;
    loop {
        match attempt() {
            Err(Problem::Passing { reason, wait }) => pause(watch, &mut failures, &reason, wait)?,
            other => return other,
        }
    }
}

/// Waits before the next attempt; an error if there shall be none.
pub(super) fn pause(
    watch: &Watch<'_>,
    failures: &mut u32,
    reason: &str,
    wait: Option<Duration>,
) -> Result<(), Problem> {
    *failures += 1;
    if *failures >= RETRIES {
        return Err(Problem::Lasting(format!("{reason} ({RETRIES} times)")));
    }
    if let Some(wait) = wait.filter(|wait| *wait > PATIENCE) {
        return Err(Problem::Lasting(format!("{reason}, and asks to wait for {} s", wait.as_secs())));
    }
    let doubled = PAUSE.saturating_mul(1 << (*failures - 1)).min(LONGEST_PAUSE);
    // A little disorder, so that many clients do not come back together.
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let jitter = doubled.mul_f64(f64::from(since.subsec_micros() % 1000) / 4000.0);
    let delay = wait.unwrap_or(doubled + jitter);
    if watch.retry(delay, reason) { Ok(()) } else { Err(Problem::Reader(FetchError::Cancelled)) }
}

/// Seconds; a date is read as none, and the usual pause is made.
fn retry_after(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(Duration::from_secs)
}

fn host(url: &Uri) -> &str {
    url.host().unwrap_or_default()
}

fn origin(url: &Uri) -> Option<String> {
    Some(format!("{}://{}", url.scheme_str()?, url.authority()?.as_str().to_ascii_lowercase()))
}

/// Where `location`, absolute or not, leads from `base` (RFC 3986, 5.2, without dot segments).
fn join(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let scheme = base.scheme_str()?;
    let target = if location.contains("://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{}{location}", origin(base)?)
    } else {
        let folder = base.path().rfind('/').map_or("/", |slash| &base.path()[..=slash]);
        format!("{}{folder}{location}", origin(base)?)
    };
    let target: Uri = target.parse().ok()?;
    matches!(target.scheme_str(), Some("http" | "https")).then_some(target)
}

/// A path as part of an address: whatever is not plain is escaped, also slashes unless `keep` has them.
pub(super) fn escape(text: &str, keep: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        let character = char::from(byte);
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.contains(character) {
            escaped.push(character);
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_say() {
        let base: Uri = "https://a.org/x/y?z=1".parse().unwrap();
        for (location, expected) in [
            ("https://b.org/q?w=2", "https://b.org/q?w=2"),
            ("//b.org/q", "https://b.org/q"),
            ("/q", "https://a.org/q"),
            ("q?e=%2F", "https://a.org/x/q?e=%2F"),
            ("/q#part", "https://a.org/q"),
        ] {
            assert_eq!(join(&base, location).unwrap().to_string(), expected, "{location}");
        }
        assert!(join(&base, "file:///etc/passwd").is_none() && join(&base, "ftp://a.org/").is_none());
    }

    #[test]
    fn a_token_is_kept_to_its_host_and_off_open_lines() {
        let token = Token::new("https://Hub.org/api", " secret\n").unwrap();
        assert_eq!((token.origin.as_str(), token.secret.as_str()), ("https://hub.org", "secret"));
        assert!(Token::new("http://hub.org", "secret").is_none());
        assert!(Token::new("http://127.0.0.1:8080", "secret").is_some());
        assert!(
            Token::new("https://hub.org", "a b").is_none() && Token::new("https://hub.org", "").is_none()
        );
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(escape("a b/c%?.pt", "/"), "a%20b/c%25%3F.pt");
        assert_eq!(escape("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(escape("ü", ""), "%C3%BC");
    }
}
