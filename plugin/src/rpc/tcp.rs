//! The door to the network: TLS, a bearer token, known host names, limits; the same calls but those
//! that destroy, and no WebSockets.
//!
//! Open only where the configuration says so (`config/tcp.rs`). A caller without the token learns
//! nothing and costs a handshake.

use crate::config::Tcp;
use crate::rpc::listen::{Calls, service_config};
use crate::rpc::rate::Rate;
use crate::rpc::serve::{self, Request, refuse};
use crate::rpc::{Core, pages};
use anyhow::{Context, Result};
use futures_util::FutureExt;
use hyper::{Method, StatusCode, header};
use jsonrpsee::server::{HttpResponse, Server, StopHandle};
use jsonrpsee::types::ErrorObjectOwned;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, crypto::ring, version::TLS13};
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::error::number;

/// The most connections at a time.
const CONNECTIONS_MAX: usize = 32;
/// New connections a second, in the long run and at once.
const CONNECTIONS_RATE: (u32, u32) = (20, 40);
/// Wrong tokens a second, in the long run and at once: nobody guesses one so.
const FAILURES_RATE: (u32, u32) = (2, 20);
/// Requests a second of all connections, in the long run and at once.
const REQUESTS_RATE: (u32, u32) = (200, 400);
/// How long a handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long to wait when no more descriptors are to be had.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What is answered only on the local socket: it destroys data.
const LOCAL_ONLY: &[&str] = &[
    "SR.destroy",
    "VDI.destroy",
    "VDI.revert",
    "SMAPIv3.SR.destroy",
    "SMAPIv3.Volume.destroy",
    "SMAPIv3.Volume.revert",
];

/// Marks a request that came over the network, and from where.
#[derive(Debug, Clone, Copy)]
pub struct Remote(pub SocketAddr);

impl Remote {
    /// Refuses what needs the local socket.
    ///
    /// # Errors
    /// For methods that destroy data.
    pub fn admit(self, method: &str) -> Result<(), ErrorObjectOwned> {
        if !LOCAL_ONLY.contains(&method) {
            return Ok(());
        }
        let text = format!(
            "{method} destroys data and is not to be had over the network: call it on the host, \
             through its socket"
        );
        let error = StorageError::backend(number::BAD_REQUEST, text);
        Err(ErrorObjectOwned::owned(error.code(), error.to_string(), Some(error)))
    }
}

/// The door, listening.
pub struct TcpDoor {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    tcp: Arc<Tcp>,
}

impl TcpDoor {
    /// Listens.
    ///
    /// # Errors
    /// The address is taken; certificate and key are none, or do not belong together.
    pub async fn open(tcp: Tcp) -> Result<TcpDoor> {
        let wrong = |path: &std::path::Path| format!("[tcp] {} is no PEM file", path.display());
        let chain = CertificateDer::pem_file_iter(&tcp.certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.with_context(|| wrong(&tcp.certificate))?;
        let key = PrivateKeyDer::from_pem_file(&tcp.key).with_context(|| wrong(&tcp.key))?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .context("[tcp] certificate and key")?;
        let listener = TcpListener::bind(tcp.listen).await;
        let listener = listener.with_context(|| format!("cannot listen on {}", tcp.listen))?;
        tracing::info!(at = %listener.local_addr()?, "serves the network, with TLS and a token");
        Ok(TcpDoor { listener, acceptor: Arc::new(config).into(), tcp: Arc::new(tcp) })
    }

    /// Serves until told to stop.
    pub async fn serve(self, core: Arc<Core>, stop: StopHandle) {
        let now = Instant::now();
        let mut connections = Rate::new(CONNECTIONS_RATE.0, CONNECTIONS_RATE.1, now);
        let rate = |(per_second, burst)| Arc::new(Mutex::new(Rate::new(per_second, burst, now)));
        let (requests, failures) = (rate(REQUESTS_RATE), rate(FAILURES_RATE));
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let builder = Server::builder().set_config(service_config().http_only().build());
        let calls = Calls::new(builder.to_service_builder(), &core, &stop);
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.clone().shutdown() => return,
            };
            let Ok((stream, from)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            // Whoever comes too often, or too many at a time, is hung up on.
            let place = Arc::clone(&places).try_acquire_owned();
            let (true, Ok(place)) = (connections.admit(Instant::now()), place) else { continue };
            let guard = Guard {
                tcp: Arc::clone(&self.tcp),
                requests: Arc::clone(&requests),
                failures: Arc::clone(&failures),
                core: Arc::clone(&core),
                calls: calls.clone(),
                from,
            };
            let (acceptor, stop) = (self.acceptor.clone(), stop.clone());
            tokio::spawn(async move {
                guard.serve(stream, &acceptor, stop).await;
                drop(place);
            });
        }
    }
}

/// What stands between one connection and the calls.
#[derive(Clone)]
struct Guard {
    tcp: Arc<Tcp>,
    requests: Arc<Mutex<Rate>>,
    failures: Arc<Mutex<Rate>>,
    core: Arc<Core>,
    calls: Calls,
    from: SocketAddr,
}

impl Guard {
    async fn serve(self, stream: TcpStream, acceptor: &TlsAcceptor, stop: StopHandle) {
        let from = self.from;
        let handshake = tokio::time::timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)).await;
        let Ok(Ok(stream)) = handshake else {
            tracing::debug!(%from, "no TLS");
            return;
        };
        let answer = move |request: Request| self.clone().answer(request).boxed();
        if let Err(error) = serve::serve(stream, answer, stop).await {
            tracing::debug!(%from, "connection ended: {error}");
        }
    }

    async fn answer(self, mut request: Request) -> HttpResponse {
        if let Err((status, text)) = self.judge(&request) {
            tracing::debug!(from = %self.from, %status, "refused");
            return refuse(status, text.into());
        }
        if request.method() == Method::GET
            && let Some(page) = pages::page(Arc::clone(&self.core), request.uri().path()).await
        {
            return page;
        }
        request.extensions_mut().insert(Remote(self.from));
        self.calls.answer(request).await
    }

    fn judge(&self, request: &Request) -> Result<(), (StatusCode, &'static str)> {
        let too_many = (StatusCode::TOO_MANY_REQUESTS, "too many requests; try again later");
        let admits = |rate: &Mutex<Rate>| {
            rate.lock().unwrap_or_else(PoisonError::into_inner).admit(Instant::now())
        };
        if !admits(&self.requests) {
            return Err(too_many);
        }
        let text = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
        let host = text(header::HOST).unwrap_or_default();
        let name = host.rsplit_once(':').map_or(host, |(name, port)| {
            if port.bytes().all(|byte| byte.is_ascii_digit()) { name } else { host }
        });
        let name = name.trim_start_matches('[').trim_end_matches(']');
        if !self.tcp.hosts.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            return Err((StatusCode::FORBIDDEN, "this is not one of the names in [tcp] hosts"));
        }
        if request.method() == Method::GET && request.uri().path() == "/status" {
            // The page says nothing by itself: it asks for the token and calls with it.
            return Ok(());
        }
        let token = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        if token.is_some_and(|token| same(token.as_bytes(), self.tcp.token.as_bytes())) {
            return Ok(());
        }
        if !admits(&self.failures) {
            return Err(too_many);
        }
        Err((StatusCode::UNAUTHORIZED, "show the token: Authorization: Bearer ..."))
    }
}

/// Whether both are the same, in a time that does not tell where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}
