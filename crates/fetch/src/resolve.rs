//! Names to vetted addresses. Never caches an answer: every hop asks anew, and what was vetted is what is dialled.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolving};
use tokio::sync::Semaphore;

use super::address::AddressPolicy;

/// Looks up the addresses of a name. [`SystemResolver`] is the real one; tests bring names of their own.
pub trait Resolve: Send + Sync {
    /// Every address of `name`, unvetted, in the order in which to try them.
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
}

/// Asks the operating system (`getaddrinfo`).
#[derive(Debug)]
pub struct SystemResolver {
    lookups: Arc<Semaphore>,
}

impl SystemResolver {
    /// A resolver that runs at most `max_lookups` look-ups at once. They cannot be called off, so each holds its place
    /// until the operating system has answered, even when nobody waits for it any more: names that are slow to
    /// resolve cannot fill the runtime's threads.
    #[must_use]
    pub fn new(max_lookups: usize) -> Self {
        Self {
            lookups: Arc::new(Semaphore::new(max_lookups.min(Semaphore::MAX_PERMITS))),
        }
    }
}

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            let permit = Arc::clone(&self.lookups).acquire_owned().await;
            let permit = permit.map_err(io::Error::other)?;
            let name = name.to_owned();
            let lookup = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                let answers = (name.as_str(), 0).to_socket_addrs()?;
                Ok(answers.map(|answer| answer.ip()).collect())
            });
            lookup.await.map_err(io::Error::other)?
        })
    }
}

/// Stands between the HTTP client and `inner`, and lets only vetted answers through.
pub(super) struct VettedResolver {
    pub(super) inner: Arc<dyn Resolve>,
    pub(super) addresses: AddressPolicy,
}

impl reqwest::dns::Resolve for VettedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let inner = Arc::clone(&self.inner);
        let addresses = self.addresses.clone();
        Box::pin(async move {
            let answers = inner.resolve(name.as_str()).await?;
            addresses.vet(&answers)?;
            // Port 0 stands for the URL's own.
            let dialled = answers.into_iter().map(|answer| SocketAddr::new(answer, 0));
            Ok(Box::new(dialled) as Addrs)
        })
    }
}
