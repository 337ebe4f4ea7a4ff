//! A fault-injecting proxy before a server. Requests always pass; the fate of answers can be changed at any
//! time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// While answers are cut, one in this many pieces breaks off and closes its connection: often enough to hit
/// every kind of answer, seldom enough that some conversations finish.
const CUT_EVERY: usize = 8;

/// The fate of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// They pass.
    Pass,
    /// Some break off in the middle, and close their connection.
    Cut,
    /// Each is delayed by this, in order.
    Delay(Duration),
    /// They are lost, though the server has executed the request. The connection stays silent forever, as
    /// behind a firewall that forgot it; only new ones may work.
    Swallow,
}

/// A proxy that stops with its test.
pub struct Proxy {
    answers: watch::Sender<Answers>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a port of this machine for the server at `server`.
    pub async fn start(port: u16, server: String) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let (answers, now) = watch::channel(Answers::Pass);
        let task = tokio::spawn(async move {
            let pieces = Arc::new(AtomicUsize::new(0));
            // Dropped with the task, which closes every connection.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (server, now, pieces) = (server.clone(), now.clone(), Arc::clone(&pieces));
                connections.spawn(async move {
                    if let Ok(server) = TcpStream::connect(server).await {
                        carry(client, server, now, &pieces).await;
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { answers, task }
    }

    /// From now on.
    pub fn answers(&self, answers: Answers) {
        self.answers.send_replace(answers);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(client: TcpStream, server: TcpStream, now: watch::Receiver<Answers>, pieces: &AtomicUsize) {
    for stream in [&client, &server] {
        let _ = stream.set_nodelay(true);
    }
    let (mut requests, to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let (queue, due) = mpsc::unbounded_channel();
    // Either end closes both sockets.
    tokio::select! {
        _ = copy(&mut requests, &mut to_server) => {}
        _ = async { tokio::join!(read(from_server, queue, now, pieces), write(due, to_client)) } => {}
    }
}

async fn read(
    mut server: OwnedReadHalf,
    queue: mpsc::UnboundedSender<(Instant, Vec<u8>)>,
    now: watch::Receiver<Answers>,
    pieces: &AtomicUsize,
) {
    let mut silent = false;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(read @ 1..) = server.read(&mut buffer).await else { return };
        let (mut piece, mut delay) = (buffer[..read].to_vec(), Duration::ZERO);
        let mut cut = false;
        match *now.borrow() {
            Answers::Pass => {}
            Answers::Cut => cut = pieces.fetch_add(1, Ordering::Relaxed) % CUT_EVERY == CUT_EVERY - 1,
            Answers::Delay(by) => delay = by,
            Answers::Swallow => silent = true,
        }
        if silent {
            continue;
        }
        if cut {
            piece.truncate(read / 2);
        }
        if queue.send((Instant::now() + delay, piece)).is_err() || cut {
            return;
        }
    }
}

async fn write(mut due: mpsc::UnboundedReceiver<(Instant, Vec<u8>)>, mut client: OwnedWriteHalf) {
    while let Some((at, piece)) = due.recv().await {
        sleep_until(at).await;
        if client.write_all(&piece).await.is_err() {
            return;
        }
    }
}
