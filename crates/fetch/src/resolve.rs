//! Resolves host names to addresses that may be dialled.
//!
//! [`VettedResolver`] sits inside the HTTP client, so the addresses that were judged are the ones
//! that are dialled; there is no second look-up in between. Nothing is cached: every request asks
//! anew, and a name that changes its answer is judged by the new one.

use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use hyper_util::client::legacy::connect::dns::Name;
use tokio::sync::Semaphore;
use tower_service::Service;

use super::address::AddressPolicy;

/// Looks up the addresses of a host name.
///
/// [`SystemResolver`] asks the operating system; tests use resolvers with names of their own.
pub trait Resolve: Send + Sync {
    /// Returns every address of `name`, not yet judged, in the order in which to try them.
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
}

/// Resolves names by asking the operating system (`getaddrinfo`).
#[derive(Debug)]
pub struct SystemResolver {
    lookups: Arc<Semaphore>,
}

impl SystemResolver {
    /// Creates a resolver that runs at most `max_lookups` look-ups at one time.
    ///
    /// A look-up cannot be cancelled, so each holds its place until the operating system has
    /// answered, even when nobody waits for it any more. Names that are slow to resolve can
    /// therefore not fill the runtime's threads.
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

/// Gives the HTTP client the answers of `inner`, if the policy allows every one of them.
#[derive(Clone)]
pub(super) struct VettedResolver {
    pub(super) inner: Arc<dyn Resolve>,
    pub(super) addresses: AddressPolicy,
}

impl std::fmt::Debug for VettedResolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VettedResolver").finish_non_exhaustive()
    }
}

impl Service<Name> for VettedResolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let inner = Arc::clone(&self.inner);
        let addresses = self.addresses.clone();
        Box::pin(async move {
            let answers = inner.resolve(name.as_str()).await?;
            addresses.check_all(&answers)?;
            // Port 0 stands for the port of the URL.
            let dialled = answers.into_iter().map(|answer| SocketAddr::new(answer, 0));
            Ok(dialled.collect::<Vec<_>>().into_iter())
        })
    }
}
