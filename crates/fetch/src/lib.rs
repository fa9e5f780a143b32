//! Image URL to bytes, for a URL that a stranger named: policy, redirects, limits, `data:` URLs.
//!
//! Never looks at what the bytes mean (that is `image`'s task), never retries, never shares a connection between two
//! fetches, and never dials an address that [`AddressPolicy`] has not vetted. What is and is not guaranteed is written
//! in `docs/security.md`.

#![forbid(unsafe_code)]
// Outside input must never reach a panic; tests may.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

mod address;
mod client;
mod config;
mod data_url;
mod error;
mod policy;
mod resolve;

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;

pub use self::address::AddressPolicy;
pub use self::config::FetchConfig;
pub use self::error::{Answer, DataUrlFault, FetchError, Refusal, SetupError, Unusable};
pub use self::policy::{UrlPolicy, redacted};
pub use self::resolve::{Resolve, SystemResolver};

use self::client::Client;

/// Turns image URLs into bytes under one [`FetchConfig`]. Built once and shared.
#[derive(Debug)]
pub struct Fetcher {
    config: FetchConfig,
    client: Client,
    slots: Semaphore,
}

impl Fetcher {
    /// A fetcher that asks the operating system for names.
    ///
    /// # Errors
    /// When `config` leaves no room to fetch at all, or the TLS client cannot start (no root certificates, say).
    pub fn new(config: FetchConfig) -> Result<Self, SetupError> {
        let resolver = SystemResolver::new(config.max_concurrent);
        Self::with_resolver(config, Arc::new(resolver))
    }

    /// A fetcher that asks `resolver` for names. Its answers are vetted like any other's.
    ///
    /// # Errors
    /// As [`Fetcher::new`].
    pub fn with_resolver(
        config: FetchConfig,
        resolver: Arc<dyn Resolve>,
    ) -> Result<Self, SetupError> {
        if !(1..=Semaphore::MAX_PERMITS).contains(&config.max_concurrent) {
            return Err(SetupError::Concurrency(config.max_concurrent));
        }
        Ok(Self {
            client: Client::new(&config, resolver)?,
            slots: Semaphore::new(config.max_concurrent),
            config,
        })
    }

    /// The limits that this fetcher keeps.
    #[must_use]
    pub fn config(&self) -> &FetchConfig {
        &self.config
    }

    /// The bytes behind `url`: an `http:`, `https:` or `data:image/...;base64,` URL. Between 1 and
    /// [`FetchConfig::max_bytes`] bytes, exactly as the server sent them; their meaning is unchecked.
    ///
    /// Takes at most twice [`FetchConfig::total_timeout`]: once waiting for one of [`FetchConfig::max_concurrent`]
    /// slots, once fetching. Dropping the future closes the connection.
    ///
    /// # Errors
    /// See [`FetchError`]; what a caller may be told is [`FetchError::public_message`].
    pub async fn fetch(&self, url: &str) -> Result<Bytes, FetchError> {
        if data_url::is_data_url(url) {
            return data_url::decode(url, self.config.max_bytes);
        }
        let wait = tokio::time::timeout(self.config.total_timeout, self.slots.acquire());
        let Ok(Ok(_slot)) = wait.await else {
            return Err(FetchError::Busy {
                limit: self.config.max_concurrent,
            });
        };
        self.client.get(url).await
    }
}
