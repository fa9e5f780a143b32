//! Serves the images that a service under test is asked to fetch, on loopback.
//!
//! The images are in memory, so that serving them costs the machine little beside the service.

use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::cli::Failure;

/// The longest request head in bytes. Those of the service have a tenth of it.
const MAX_HEAD: usize = 8192;

/// Serves each of `files` under its number on a port of this machine, and returns their URLs.
///
/// Port 0 takes a free port. The server runs for as long as the runtime does.
pub(super) async fn serve(files: Vec<Bytes>, port: u16) -> Result<Vec<String>, Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .map_err(|error| format!("cannot serve pictures on port {port}: {error}"))?;
    let port = listener.local_addr()?.port();
    let urls = (0..files.len()).map(|i| format!("http://127.0.0.1:{port}/{i}"));
    let urls = urls.collect();
    let files = Arc::new(files);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // If a fetch breaks off, the service will report it.
            tokio::spawn(answer(stream, files.clone()));
        }
    });
    Ok(urls)
}

/// Answers one request and closes the connection.
async fn answer(mut stream: TcpStream, files: Arc<Vec<Bytes>>) -> std::io::Result<()> {
    let mut head = Vec::with_capacity(MAX_HEAD);
    while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let path = String::from_utf8_lossy(&head);
    let path = path.split(' ').nth(1).unwrap_or_default();
    let number: Option<usize> = path.trim_start_matches('/').parse().ok();
    let (status, file) = match number.and_then(|number| files.get(number)) {
        Some(file) => ("200 OK", file.clone()),
        None => ("404 Not Found", Bytes::new()),
    };
    let length = file.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream
        .write_all_buf(&mut Buf::chain(head.as_bytes(), file))
        .await?;
    stream.shutdown().await
}
