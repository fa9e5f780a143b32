//! Fetches the image behind a URL that a stranger named.
//!
//! A service that fetches URLs for strangers can be made to read from its own network: cloud
//! metadata, admin pages, databases. This crate exists to prevent that; `docs/security.md` says
//! what is guaranteed and what is not. [`Fetcher::fetch`] takes these steps:
//!
//! 1. A `data:` URL is decoded (`data_url`). Everything below is for `http:` and `https:` URLs.
//! 2. [`UrlPolicy`] judges the text of the URL: its scheme, its port, its host (`policy`).
//! 3. The host's name is looked up, and [`AddressPolicy`] judges every address that it resolves to
//!    (`resolve`, `address`). Only judged addresses are dialled.
//! 4. The request is sent. A redirect's target goes through steps 2 and 3 anew (`client`).
//! 5. The body is read up to the size limit. It counts against the memory for all bodies until its
//!    bytes are dropped (`memory`).
//!
//! A fetch is never retried, and it never shares a connection with another fetch. The bytes are
//! returned as the server sent them; to decode them is the task of `imgclass-image`.

#![forbid(unsafe_code)]
// Input from outside must never cause a panic. Tests may panic.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

mod address;
mod base64;
mod client;
mod config;
mod data_url;
mod error;
mod memory;
mod policy;
mod resolve;

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;

pub use self::address::AddressPolicy;
pub use self::base64::decode_base64;
pub use self::config::FetchConfig;
pub use self::data_url::{decode as decode_data_url, is_data_url};
pub use self::error::{BadAnswer, DataUrlFault, FetchError, SetupError, UnusableUrl, UrlRefusal};
pub use self::policy::{UrlPolicy, redacted};
pub use self::resolve::{Resolve, SystemResolver};

use self::base64::looks_like_base64;
use self::client::Client;
use self::memory::BodyMemory;

/// Fetches image URLs under one [`FetchConfig`]. It is built once and shared.
#[derive(Debug)]
pub struct Fetcher {
    config: FetchConfig,
    client: Client,
    slots: Semaphore,
    memory: BodyMemory,
}

impl Fetcher {
    /// Creates a fetcher that asks the operating system to resolve names.
    ///
    /// # Errors
    ///
    /// Returns an error if [`FetchConfig::max_concurrent`] is out of range, if
    /// [`FetchConfig::user_agent`] cannot be sent, or if the TLS client cannot start, for example
    /// because there are no root certificates.
    pub fn new(config: FetchConfig) -> Result<Self, SetupError> {
        let resolver = SystemResolver::new(config.max_concurrent);
        Self::with_resolver(config, Arc::new(resolver))
    }

    /// Creates a fetcher that asks `resolver` to resolve names. The addresses that it returns are
    /// judged like all others.
    ///
    /// # Errors
    ///
    /// Returns an error in the same cases as [`Fetcher::new`].
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
            memory: BodyMemory::new(config.max_held_bytes, config.max_bytes),
            config,
        })
    }

    /// Returns the limits of this fetcher.
    #[must_use]
    pub fn config(&self) -> &FetchConfig {
        &self.config
    }

    /// Fetches the bytes behind `url`, an `http:`, `https:` or `data:image/...;base64,` URL. Blanks
    /// and newlines at its end are ignored.
    ///
    /// The result has between 1 and [`FetchConfig::max_bytes`] bytes, exactly as the server sent
    /// them; nothing checks that they are an image. Those of an `http:` or `https:` URL count against
    /// [`FetchConfig::max_held_bytes`] until the last copy of the result is dropped.
    ///
    /// This takes at most three times [`FetchConfig::total_timeout`]: to wait for one of the
    /// [`FetchConfig::max_concurrent`] slots, to wait for memory, and to fetch. Dropping the future closes the
    /// connection.
    ///
    /// # Errors
    ///
    /// [`FetchError`] lists the reasons. Use [`FetchError::public_message`] for what the caller may
    /// be told.
    pub async fn fetch(&self, url: &str) -> Result<Bytes, FetchError> {
        if is_data_url(url) {
            return data_url::decode(url, self.config.max_bytes);
        }
        let url = url.trim_end_matches([' ', '\t', '\r', '\n']);
        if looks_like_base64(url) {
            return Err(DataUrlFault::Scheme.into());
        }
        let wait = tokio::time::timeout(self.config.total_timeout, self.slots.acquire());
        let Ok(Ok(_slot)) = wait.await else {
            return Err(FetchError::Busy {
                limit: self.config.max_concurrent,
            });
        };
        let memory = self.memory.first_share(self.config.total_timeout).await;
        let memory = memory.ok_or(FetchError::MemoryFull)?;
        self.client.get(url, memory).await
    }
}
