//! The socket for requests, as the process has it.
//!
//! Requests that take long wait beside the places of those that are answered at once. Time limits are on what
//! depends on the other side: that it sends its request, and that it reads its answer. A caller that goes away
//! gives up its request, unless that has begun.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::events::Events;
use super::listener::{Connected, Listener};
use super::requests::{
    Answer, LONGEST, PATIENCE, Pending, Reply, Request, SOCKET, accepted, rendered, taken_apart,
};
use super::stream::gone;

/// How many requests are read, or are answered at once, at a time.
const AT_A_TIME: usize = 8;

/// How many may wait for what a server says to a hello.
const PINGS: usize = 256;

/// The room for files that wait until they are checked, in KiB: two of the longest requests.
const ROOM: u32 = 128 << 10;
const _: () = assert!(ROOM as u64 == LONGEST / 512);

/// What even the shortest of them takes of it, so that 128 wait at most.
const LEAST: u32 = 1 << 10;

/// What is asked, one after the other.
#[derive(Debug)]
pub struct Requests {
    pending: mpsc::Receiver<Pending>,
    task: tokio::task::JoinHandle<()>,
}

impl Requests {
    /// Waits for the next request.
    pub async fn next(&mut self) -> Option<Pending> {
        self.pending.recv().await
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What all connections share.
#[derive(Debug, Clone)]
struct Door {
    pending: mpsc::Sender<Pending>,
    events: Events,
    pings: Arc<Semaphore>,
    reloads: Arc<Semaphore>,
}

/// Listens in `directory`.
///
/// # Errors
/// When the socket cannot be made.
pub fn listen(directory: &Path, events: &Events) -> io::Result<Requests> {
    let mut listener = Listener::bind(&directory.join(SOCKET), AT_A_TIME)?;
    let (sender, pending) = mpsc::channel(1);
    let door = Door {
        pending: sender,
        events: events.clone(),
        pings: Arc::new(Semaphore::new(PINGS)),
        reloads: Arc::new(Semaphore::new(ROOM as usize)),
    };
    let task = tokio::spawn(async move {
        loop {
            let connected = listener.accept().await;
            tokio::spawn(door.clone().serve(connected));
        }
    });
    Ok(Requests { pending, task })
}

impl Door {
    async fn serve(self, (mut stream, place): Connected) -> io::Result<()> {
        let mut bytes = Vec::new();
        timeout(PATIENCE, (&mut stream).take(LONGEST + 1).read_to_end(&mut bytes)).await??;
        let length = bytes.len();
        // That many bytes would hold the loop.
        let request =
            spawn_blocking(move || taken_apart(&bytes)).await.map_err(io::Error::other)?;
        let held = request.and_then(|request| {
            let place = self.place(&request, length, place)?;
            Ok((request, place))
        });
        let (reply, _place) = match held {
            Ok((Request::Monitor(peer), _)) => match self.events.follow(stream, peer, accepted()) {
                Ok(()) => return Ok(()),
                Err((back, why)) => {
                    stream = back;
                    (Reply::Said(Answer::refused(why)), None)
                }
            },
            Ok((request, place)) => {
                let reply = tokio::select! {
                    reply = self.ask(request) => reply,
                    () = gone(&stream) => return Ok(()),
                };
                (reply, Some(place))
            }
            Err(why) => (Reply::Said(Answer::refused(why)), None),
        };
        let bytes = match reply {
            Reply::Said(answer) => rendered(answer),
            Reply::Status(snapshot) => snapshot.rendered().await,
        };
        timeout(PATIENCE, stream.write_all(&bytes)).await?
    }

    /// The place that a request keeps while it waits for its answer: `short`, the one that it has, if that
    /// comes at once.
    ///
    /// # Errors
    /// When too many ask for the same, in one line.
    fn place(
        &self,
        request: &Request,
        length: usize,
        short: OwnedSemaphorePermit,
    ) -> Result<OwnedSemaphorePermit, String> {
        match request {
            Request::Where
            | Request::Reload(None)
            | Request::Kick(_)
            | Request::Show(_)
            | Request::Monitor(_) => Ok(short),
            Request::Ping(_) => Arc::clone(&self.pings)
                .try_acquire_owned()
                .map_err(|_| format!("{PINGS} others wait for an answer of a server already")),
            Request::Reload(Some(_)) => {
                let length = u32::try_from(length >> 10).unwrap_or(ROOM);
                Arc::clone(&self.reloads)
                    .try_acquire_many_owned(length.clamp(LEAST, ROOM))
                    .map_err(|_| "too many files wait already until they are checked".to_owned())
            }
        }
    }

    async fn ask(&self, request: Request) -> Reply {
        let (sender, answer) = oneshot::channel();
        let closed = || Reply::Said(Answer::refused("the process is ending"));
        match self.pending.send((request, sender)).await {
            Ok(()) => answer.await.unwrap_or_else(|_| closed()),
            Err(_) => closed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream as Connection;
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;

    /// A socket in a directory of its own.
    struct Place {
        directory: PathBuf,
        requests: Requests,
    }

    impl Place {
        fn new(name: &str) -> Self {
            let directory =
                std::env::temp_dir().join(format!("ipipou-asked-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&directory).unwrap();
            let requests = listen(&directory, &Events::of(&directory)).unwrap();
            Place { directory, requests }
        }

        fn ask(&self, request: &str) -> Connection {
            let mut stream = Connection::connect(self.directory.join(SOCKET)).unwrap();
            stream.write_all(format!(r#"{{"ipipou":1,"request":{request}}}"#).as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            stream
        }

        async fn next(&mut self) -> Pending {
            timeout(Duration::from_secs(5), self.requests.next()).await.unwrap().unwrap()
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test);
        runtime.shutdown_background();
    }

    #[test]
    fn a_request_that_takes_long_delays_no_other() {
        run(async {
            let mut place = Place::new("long");
            let long = (0..40).map(|number| match number % 2 {
                0 => place.ask(r#"{"ping":null}"#),
                _ => place.ask(r#"{"reload":{"texts":[],"secrets":{}}}"#),
            });
            let long: Vec<_> = long.collect();
            let mut waiting = Vec::new();
            for _ in &long {
                waiting.push(place.next().await);
            }
            let _kick = place.ask(r#"{"kick":"anna"}"#);
            assert_eq!(place.next().await.0, Request::Kick("anna".to_owned()));
        });
    }

    #[test]
    fn a_caller_that_goes_gives_up_its_request() {
        run(async {
            let mut place = Place::new("gone");
            let asker = place.ask(r#"{"ping":null}"#);
            let (_, mut answer) = place.next().await;
            assert!(!answer.is_closed());
            drop(asker);
            timeout(Duration::from_secs(5), answer.closed()).await.unwrap();
        });
    }

    #[test]
    fn too_many_requests_for_the_same_are_refused() {
        run(async {
            let mut place = Place::new("many");
            let (mut askers, mut waiting) = (Vec::new(), Vec::new());
            for _ in 0..PINGS {
                askers.push(place.ask(r#"{"ping":null}"#));
                waiting.push(place.next().await);
            }
            let mut one_more = place.ask(r#"{"ping":null}"#);
            let answer = spawn_blocking(move || {
                let mut text = String::new();
                one_more.read_to_string(&mut text).map(|_| text)
            });
            let answer = timeout(Duration::from_secs(5), answer).await.unwrap().unwrap().unwrap();
            assert!(answer.contains("256 others wait"), "{answer}");
        });
    }
}
