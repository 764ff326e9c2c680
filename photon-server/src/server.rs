//! Opening ports, taking connections, and ending in good order.
use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use photon::{Photon, Shutdown};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{Semaphore, watch},
    task::JoinSet,
};

#[cfg(feature = "kv-events")]
use crate::kv_events::Publisher;
use crate::{
    Config,
    app::App,
    connection::{self, Protocol},
};

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}{hint}")]
pub struct BindError {
    /// Where it should have.
    pub address: SocketAddr,
    /// What the system said.
    pub source: io::Error,
    hint: &'static str,
}

/// A server with its ports open.
pub struct Server {
    app: Arc<App>,
    doors: Vec<Door>,
    #[cfg(feature = "kv-events")]
    publisher: Option<Publisher>,
    stop: watch::Sender<bool>,
}

/// A port, and what is spoken there.
struct Door {
    listener: TcpListener,
    router: Router,
    protocol: Protocol,
}

impl Door {
    fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("addresses", &self.addresses()).finish_non_exhaustive()
    }
}

/// Tells a server to stop, from anywhere.
#[derive(Clone, Debug)]
pub struct Handle(watch::Sender<bool>);

impl Handle {
    /// No more requests are taken; those under way have [`Config::drain`] to end. A second call gives
    /// them up at once.
    pub fn stop(&self) {
        self.0.send_modify(|stopping| *stopping = true);
    }
}

impl Server {
    /// Opens the ports. Nothing is answered until [`Server::run`].
    ///
    /// # Errors
    /// If a port is taken or may not be used.
    pub async fn bind(photon: Photon, config: Config) -> Result<Self, BindError> {
        let mut listeners = vec![listen(config.listen, config.port_tries)?];
        if let Some(address) = config.ollama {
            listeners.push(listen(address, 0)?);
        }
        #[cfg(feature = "grpc")]
        let grpc = config.grpc.map(|address| listen(address, 0)).transpose()?;
        #[cfg(feature = "kv-events")]
        let publisher = match config.kv_events {
            Some(address) => {
                let bound = Publisher::bind(address, &config.model_name).await;
                Some(bound.map_err(|source| BindError { address, source, hint: "" })?)
            }
            None => None,
        };
        let (app, stop) = (Arc::new(App::new(photon, config)), watch::Sender::new(false));
        let router = crate::app::router(&app);
        let http = |listener| Door { listener, router: router.clone(), protocol: Protocol::Http };
        let doors = listeners.into_iter().map(http);
        #[cfg(feature = "grpc")]
        let doors = doors.chain(grpc.map(|listener| {
            let router = crate::kserve::grpc::router(&app, stop.subscribe());
            Door { listener, router, protocol: Protocol::Grpc }
        }));
        Ok(Server {
            doors: doors.collect(),
            app,
            #[cfg(feature = "kv-events")]
            publisher,
            stop,
        })
    }

    /// Where it listens for HTTP.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let http = self.doors.iter().filter(|door| door.protocol == Protocol::Http);
        http.filter_map(Door::address).collect()
    }

    /// Where it listens for gRPC.
    #[cfg(feature = "grpc")]
    pub fn grpc_address(&self) -> Option<SocketAddr> {
        self.doors.iter().find(|door| door.protocol == Protocol::Grpc)?.address()
    }

    /// Where it publishes what is cached, and where that is to be had again.
    #[cfg(feature = "kv-events")]
    pub fn kv_events_addresses(&self) -> Option<[SocketAddr; 2]> {
        self.publisher.as_ref().map(Publisher::addresses)
    }

    /// What stops it.
    pub fn handle(&self) -> Handle {
        Handle(self.stop.clone())
    }

    /// Answers until it is told to stop and what was under way is done or given up; then the engine is
    /// stopped too.
    pub async fn run(self) {
        let Server { app, doors, stop, .. } = self;
        #[cfg(feature = "kv-events")]
        if let Some((publisher, events)) = self.publisher.zip(app.photon.cache_events()) {
            tokio::spawn(publisher.run(events));
        }
        let room = Arc::new(Semaphore::new(app.config.max_connections));
        let mut accepting = JoinSet::new();
        let connections = Arc::new(tokio::sync::Mutex::new(JoinSet::new()));
        for door in doors {
            let (app, room) = (Arc::clone(&app), Arc::clone(&room));
            let (stop, connections) = (stop.subscribe(), Arc::clone(&connections));
            accepting.spawn(accept(door, app, room, stop, connections));
        }
        let mut stopping = stop.subscribe();
        // The sender lives in this function.
        let _ = stopping.wait_for(|&stopping| stopping).await;
        app.stop();
        accepting.join_all().await;
        let drained = async {
            let mut connections = connections.lock().await;
            while connections.join_next().await.is_some() {}
        };
        stopping.mark_unchanged();
        tokio::select! {
            () = drained => {}
            () = tokio::time::sleep(app.config.drain) => {
                tracing::warn!("requests were still under way; they are given up");
            }
            _ = stopping.changed() => {}
        }
        let photon = app.photon.clone();
        // Waits for the engine's thread.
        let _ = tokio::task::spawn_blocking(move || photon.shutdown(Shutdown::Cancel)).await;
    }
}

/// Takes connections while there is room.
async fn accept(
    Door { listener, router, protocol }: Door,
    app: Arc<App>,
    room: Arc<Semaphore>,
    mut stop: watch::Receiver<bool>,
    connections: Arc<tokio::sync::Mutex<JoinSet<()>>>,
) {
    loop {
        let next = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            let permit = permit.expect("nobody closes the semaphore");
            listener.accept().await.map(|(socket, _)| (socket, permit))
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            _ = stop.wait_for(|&stopping| stopping) => return,
        };
        let (socket, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many open files, mostly: it passes when some are closed.
                tracing::warn!(%error, "cannot take a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Answers are written in pieces that should arrive as they are written.
        let _ = socket.set_nodelay(true);
        let (router, app, stop) = (router.clone(), Arc::clone(&app), stop.clone());
        let mut connections = connections.lock().await;
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            connection::serve(socket, protocol, router, &app.config, stop).await;
            drop(permit);
        });
    }
}

/// Opens a port, or one of the next.
fn listen(address: SocketAddr, tries: u16) -> Result<TcpListener, BindError> {
    let mut at = address;
    loop {
        let socket = match address.is_ipv4() {
            true => TcpSocket::new_v4(),
            false => TcpSocket::new_v6(),
        };
        let listener = socket.and_then(|socket| {
            // Lets a server that was just stopped start again. On Windows it would let two share a port.
            #[cfg(not(windows))]
            socket.set_reuseaddr(true)?;
            socket.bind(at)?;
            socket.listen(1024)
        });
        match listener {
            Ok(listener) => return Ok(listener),
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && at.port() - address.port() < tries =>
            {
                at.set_port(at.port() + 1);
            }
            Err(source) => {
                let hint = match source.kind() {
                    io::ErrorKind::AddrInUse => "; choose another with --port",
                    io::ErrorKind::PermissionDenied => "; ports below 1024 need more rights",
                    _ => "",
                };
                return Err(BindError { address: at, source, hint });
            }
        }
    }
}
