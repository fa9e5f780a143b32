//! A server on loopback that plays a script on each connection, for the tests of this crate.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// An answer with a body of five bytes.
pub(crate) const IMAGE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nimage";

/// One thing that a server does on a connection after it has read a request.
///
/// The connection closes after the last step.
#[derive(Clone)]
pub(crate) enum Step {
    /// Sends the text, in which `PORT` stands for the server's port.
    Send(String),
    /// Sends the bytes over and over for as long as the other side takes them.
    Endless(&'static [u8]),
    /// Sends the bytes over and over, with a pause of 10 ms before each.
    Drip(&'static [u8]),
    /// Sends nothing until the other side leaves.
    Silence,
}

/// A running server.
pub(crate) struct Server {
    pub(crate) port: u16,
    /// How many connections it has accepted.
    pub(crate) connections: Arc<AtomicUsize>,
    /// The head of every request that it has read.
    pub(crate) requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Starts a server that plays `scripts` in turn, one for each connection, and the last one for
    /// all further ones.
    pub(crate) async fn start(scripts: Vec<Vec<Step>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            port: listener.local_addr().unwrap().port(),
            connections: Arc::default(),
            requests: Arc::default(),
        };
        let (port, requests) = (server.port, Arc::clone(&server.requests));
        let connections = Arc::clone(&server.connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let index = connections.fetch_add(1, Ordering::SeqCst);
                let script = scripts[index.min(scripts.len() - 1)].clone();
                let requests = Arc::clone(&requests);
                tokio::spawn(async move {
                    // An error here means that the other side closed the connection.
                    let _ = play(stream, script, port, &requests).await;
                });
            }
        });
        server
    }

    /// Starts a server that plays the same steps on every connection.
    pub(crate) async fn repeating(steps: Vec<Step>) -> Self {
        Self::start(vec![steps]).await
    }

    /// The URL of an image on this server, by its address.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/image.png", self.port)
    }
}

/// Reads a request and plays the steps of `script`.
async fn play(
    mut stream: TcpStream,
    script: Vec<Step>,
    port: u16,
    requests: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
    }
    requests
        .lock()
        .unwrap()
        .push(String::from_utf8(request).unwrap());
    for step in script {
        match step {
            Step::Send(text) => {
                stream
                    .write_all(text.replace("PORT", &port.to_string()).as_bytes())
                    .await?
            }
            Step::Endless(bytes) => loop {
                stream.write_all(bytes).await?;
            },
            Step::Drip(bytes) => loop {
                tokio::time::sleep(Duration::from_millis(10)).await;
                stream.write_all(bytes).await?;
            },
            Step::Silence => {
                stream.read_u8().await?;
            }
        }
    }
    stream.shutdown().await
}

/// A script that sends `text` and closes.
pub(crate) fn raw(text: &str) -> Vec<Step> {
    vec![Step::Send(text.to_owned())]
}
