//! Where a mirror is: an address, and what the environment says of it.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, RetryConfig};
use url::Url;

use crate::credentials::{self, Credentials};
use crate::objects::Objects;

/// Without a connection for so long a server is not there.
const CONNECT: Duration = Duration::from_secs(5);
/// Without a byte for so long it is gone.
const SILENCE: Duration = Duration::from_secs(60);
/// How often a request is made again.
const RETRIES: usize = 2;

/// The address of a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    url: Url,
    endpoint: Option<String>,
}

/// Why a mirror cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The address is none of a mirror.
    #[error("`{url}` is no address of a mirror: {reason}")]
    Address {
        /// As it was written, without a password that stood in it.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The credentials cannot be used.
    #[error("{0}")]
    Credentials(String),
    /// No thread.
    #[error("starting the threads of the mirror: {0}")]
    Threads(std::io::Error),
}

impl Place {
    /// Reads `s3://BUCKET/PREFIX` or `file:///FOLDER`. `endpoint` is the server of the bucket where it is not Amazon's,
    /// such as `https://s3.example.org`; else the environment says it (`AWS_ENDPOINT_URL`).
    ///
    /// # Errors
    /// If it is none of both, or holds a password: those do not belong into files that are shared.
    pub fn parse(text: &str, endpoint: Option<&str>) -> Result<Self, PlaceError> {
        let refuse = |reason: &str| {
            // Whatever stands before an @ may be a password.
            let url = text.rsplit_once('@').map_or(text, |(_, after)| after).to_owned();
            PlaceError::Address { url, reason: reason.to_owned() }
        };
        let url = Url::parse(text).map_err(|error| refuse(&error.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse("credentials come from the environment or from a file, never in an address"));
        }
        match url.scheme() {
            "s3" if url.host_str().is_none_or(str::is_empty) => Err(refuse("write `s3://BUCKET/PREFIX`")),
            "s3" | "file" => Ok(Self { url, endpoint: endpoint.map(str::to_owned) }),
            _ => Err(refuse("write `s3://BUCKET/PREFIX` or `file:///FOLDER`")),
        }
    }

    /// The address, as people write it.
    pub fn text(&self) -> &str {
        self.url.as_str()
    }

    pub(crate) fn objects(&self) -> Result<Objects, PlaceError> {
        let refuse = |reason: String| PlaceError::Address { url: self.url.to_string(), reason };
        if self.url.scheme() == "file" {
            let folder =
                self.url.to_file_path().map_err(|()| refuse("it names no folder here".to_owned()))?;
            std::fs::create_dir_all(&folder)
                .map_err(|error| refuse(format!("making `{}`: {error}", folder.display())))?;
            let store =
                LocalFileSystem::new_with_prefix(&folder).map_err(|error| refuse(error.to_string()))?;
            return Ok(Objects::of_folder(Arc::new(store), self.url.to_string()));
        }
        let prefix = Path::from_url_path(self.url.path()).map_err(|error| refuse(error.to_string()))?;
        let store = self.bucket()?;
        Ok(Objects::of_bucket(store, prefix, self.url.to_string()))
    }

    fn bucket(&self) -> Result<Arc<AmazonS3>, PlaceError> {
        // Once per process; who was first has chosen well enough.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let endpoint = self
            .endpoint
            .clone()
            .or_else(|| variable("AWS_ENDPOINT_URL_S3"))
            .or_else(|| variable("AWS_ENDPOINT_URL"));
        let is_plain = endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(self.url.host_str().unwrap_or_default())
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_retry(RetryConfig {
                max_retries: RETRIES,
                retry_timeout: Duration::from_secs(180),
                backoff: BackoffConfig { max_backoff: Duration::from_secs(5), ..BackoffConfig::default() },
            })
            .with_client_options(
                ClientOptions::new()
                    .with_allow_http(is_plain)
                    .with_connect_timeout(CONNECT)
                    .with_read_timeout(SILENCE)
                    // A large file takes as long as it takes.
                    .with_timeout_disabled(),
            );
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(region) = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION")) {
            builder = builder.with_region(region);
        }
        if variable("AWS_ACCESS_KEY_ID").is_none()
            && let Some(Credentials { key, secret, token }) = credentials::from_file()?
        {
            builder = builder.with_access_key_id(key).with_secret_access_key(secret);
            if let Some(token) = token {
                builder = builder.with_token(token);
            }
        }
        let refuse = |error: object_store::Error| PlaceError::Address {
            url: self.url.to_string(),
            reason: error.to_string(),
        };
        Ok(Arc::new(builder.build().map_err(refuse)?))
    }
}
