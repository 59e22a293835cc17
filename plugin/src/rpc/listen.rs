//! The socket: made, guarded, accepted on; JSON-RPC over HTTP POST and WebSocket, and the pages.
//!
//! Knows no method. Everything that a client can make large is bounded here.

use crate::config::Config;
use crate::rpc::peer::{Allowed, Peer};
use crate::rpc::serve::{self, Request};
use crate::rpc::{Core, methods, origin, pages};
use anyhow::{Context, Result, bail};
use futures_util::FutureExt;
use hyper::StatusCode;
use jsonrpsee::Methods;
use jsonrpsee::server::{
    BatchRequestConfig, HttpResponse, PingConfig, Server, ServerConfig, ServerConfigBuilder,
    StopHandle, TowerServiceBuilder,
};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tower::Service;

/// The longest answer, bytes: a scan of the most volumes that an SR may have.
const RESPONSE_BYTES_MAX: u32 = 64 * 1024 * 1024;
/// The most calls of one batch.
const BATCH_CALLS_MAX: u32 = 64;
/// The most clients at a time.
const CONNECTIONS_MAX: usize = 128;
/// The most subscriptions of one connection.
const SUBSCRIPTIONS_MAX: u32 = 4;
/// Answers and events that wait for a WebSocket's reader.
const MESSAGES_QUEUED_MAX: u32 = 64;
/// How long to wait when no more descriptors are to be had.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Owner and group may connect.
const SOCKET_MODE: u32 = 0o660;

/// The socket, bound and guarded.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
    allowed: Allowed,
}

impl Door {
    /// Makes the socket; removes one that nobody serves any more.
    ///
    /// # Errors
    /// Another daemon serves it; the directory or the ownership.
    pub async fn open(config: &Config) -> Result<Door> {
        let path = config.rpc_socket();
        clear(&path).await?;
        let listener =
            UnixListener::bind(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let guard = || -> io::Result<()> {
            std::os::unix::fs::chown(&path, config.socket_user, config.socket_group)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(SOCKET_MODE))
        };
        guard().with_context(|| format!("cannot set owner and mode of {}", path.display()))?;
        let allowed = Allowed {
            uid: config.socket_user.unwrap_or_else(|| rustix::process::geteuid().as_raw()),
            gid: config.socket_group.unwrap_or_else(|| rustix::process::getegid().as_raw()),
        };
        Ok(Door { listener, allowed })
    }

    /// Serves until told to stop; connections then finish what they have begun.
    pub async fn serve(self, core: Arc<Core>, stop: StopHandle) {
        let builder = Server::builder().set_config(service_config().build());
        let calls = Calls::new(builder.to_service_builder(), &core, &stop);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.clone().shutdown() => return,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(peer) = self.admit(&stream) else { continue };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                tracing::warn!(%peer, "turned away: {CONNECTIONS_MAX} clients are connected");
                continue;
            };
            let (core, calls) = (Arc::clone(&core), calls.clone());
            let served = serve_one(stream, peer, core, calls, stop.clone());
            tokio::spawn(async move {
                served.await;
                drop(place);
            });
        }
    }

    fn admit(&self, stream: &UnixStream) -> Option<Peer> {
        match Peer::of(stream) {
            Ok(peer) if peer.is_allowed(self.allowed) => Some(peer),
            Ok(peer) => {
                tracing::warn!(%peer, "turned away: neither owner nor of the group of the socket");
                None
            }
            Err(error) => {
                tracing::warn!("turned away, its credentials cannot be told: {error}");
                None
            }
        }
    }
}

async fn clear(path: &Path) -> Result<()> {
    match UnixStream::connect(path).await {
        Ok(_) => bail!(
            "another daemon serves {}. Stop it first, or give this one a --run-dir of its own",
            path.display()
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
                .with_context(|| format!("cannot remove the stale {}", path.display()))
        }
        Err(error) => Err(error).with_context(|| format!("in the way: {}", path.display())),
    }
}

type Builder = TowerServiceBuilder<tower::layer::util::Identity, tower::layer::util::Identity>;

/// The methods, for requests over HTTP. Cheap to clone.
#[derive(Clone)]
pub struct Calls {
    builder: Builder,
    methods: Methods,
    stop: StopHandle,
}

impl Calls {
    /// All methods of `core`.
    #[must_use]
    pub fn new(builder: Builder, core: &Arc<Core>, stop: &StopHandle) -> Calls {
        Calls { builder, methods: methods::all(Arc::clone(core)), stop: stop.clone() }
    }

    /// Answers a request: calls, or the way to a WebSocket.
    pub async fn answer(&self, request: Request) -> HttpResponse {
        let mut calls = self.builder.clone().build(self.methods.clone(), self.stop.clone());
        calls.call(request).await.unwrap_or_else(|error| {
            serve::refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
        })
    }
}

/// What holds for calls at both doors.
#[must_use]
pub fn service_config() -> ServerConfigBuilder {
    ServerConfig::builder()
        .max_request_body_size(serve::REQUEST_BYTES_MAX)
        .max_response_body_size(RESPONSE_BYTES_MAX)
        .max_connections(u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX))
        .max_subscriptions_per_connection(SUBSCRIPTIONS_MAX)
        .set_message_buffer_capacity(MESSAGES_QUEUED_MAX)
        .enable_ws_ping(PingConfig::new())
        .set_batch_request_config(BatchRequestConfig::Limit(BATCH_CALLS_MAX))
}

async fn serve_one(
    stream: UnixStream,
    peer: Peer,
    core: Arc<Core>,
    calls: Calls,
    stop: StopHandle,
) {
    let answer = move |mut request: Request| {
        let (core, calls) = (Arc::clone(&core), calls.clone());
        request.extensions_mut().insert(peer);
        async move {
            if !origin::admits(request.headers()) {
                let text = "a page that is not ours may not call";
                return serve::refuse(StatusCode::FORBIDDEN, text.into());
            }
            if request.method() == hyper::Method::GET
                && let Some(page) = pages::page(core, request.uri().path()).await
            {
                return page;
            }
            calls.answer(request).await
        }
        .boxed()
    };
    if let Err(error) = serve::serve(stream, answer, stop).await {
        tracing::debug!(%peer, "connection ended: {error}");
    }
}
