//! The binary as users run it, in a folder of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use serde_json::Value;

use super::pictures::example;

/// Returns a command that runs the binary, without anything of this machine's environment that
/// could change what it does.
pub(crate) fn imgclass(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imgclass"));
    for (name, _) in std::env::vars() {
        let ours = ["IMGCLASS_", "HF_", "OTEL_"]
            .iter()
            .any(|start| name.starts_with(start));
        if ours || ["PORT", "RUST_LOG"].contains(&name.as_str()) {
            command.env_remove(name);
        }
    }
    command
        .current_dir(folder)
        .env("HF_HOME", folder.join("hub"))
        .stdin(Stdio::null());
    command
}

/// Runs the binary to its end.
pub(crate) fn run(folder: &Path, arguments: &[&str]) -> Output {
    imgclass(folder)
        .args(arguments)
        .output()
        .expect("the binary runs")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// The binary while it serves an untrained network on a free port of loopback. It ends with the
/// test.
pub(crate) struct Running {
    child: Child,
    pub(crate) port: u16,
    /// The lines of the log after `start`, as they come.
    pub(crate) log: Receiver<Value>,
    /// The lines of the log up to the one that says that the service is ready.
    pub(crate) start: Vec<Value>,
}

impl Running {
    /// Starts the binary and waits until it is ready.
    pub(crate) fn start(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = imgclass(folder)
            .args(["--hostname", "127.0.0.1", "--port", "0"])
            .args(["--weights", "random", "--json-logs"])
            .args(arguments)
            .envs(environment.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let (sender, log) = channel();
        // Read to the end: a process that logs into a full pipe blocks.
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let line =
                    serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
                let _ = sender.send(line);
            }
        });
        let mut start = Vec::new();
        let port = loop {
            let line: Value = log.recv().expect("the server is ready before it ends");
            let address = line["address"].as_str().map(str::to_owned);
            let ready = line["message"] == "ready";
            start.push(line);
            if let (true, Some(address)) = (ready, address) {
                break port_of(&address);
            }
        };
        Self {
            child,
            port,
            log,
            start,
        }
    }

    /// Sends a GET request and returns the whole answer. `headers` are lines that end with CR LF.
    pub(crate) fn get(&self, path: &str, headers: &str) -> String {
        http(self.port, &format!("GET {path} HTTP/1.1\r\n{headers}"), "")
    }

    /// Asks for the classes of [`example`] and returns the whole answer.
    pub(crate) fn classify(&self, headers: &str) -> String {
        let image = example();
        let body = format!(r#"{{"user_id": "u", "image_url": "{image}"}}"#);
        http(
            self.port,
            &format!("POST /classify_image/ HTTP/1.1\r\n{headers}"),
            &body,
        )
    }

    /// Returns the process's id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM.
    #[cfg(unix)]
    pub(crate) fn signal(&self) {
        self.send("-TERM");
    }

    /// Sends SIGHUP.
    #[cfg(unix)]
    pub(crate) fn hangup(&self) {
        self.send("-HUP");
    }

    #[cfg(unix)]
    fn send(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let kill = Command::new("kill").args([signal, &pid]).status();
        assert!(kill.expect("kill runs").success());
    }

    /// Waits for the end and returns the exit code.
    #[cfg(unix)]
    pub(crate) fn end(&mut self) -> Option<i32> {
        self.child.wait().expect("it ends").code()
    }

    /// Sends SIGTERM, waits for the end, and returns the exit code.
    #[cfg(unix)]
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        self.signal();
        self.end()
    }

    /// Waits for a line of the log whose message starts with `start`.
    pub(crate) fn until_logged(&self, start: &str) {
        let says = |line: &Value| {
            line["message"]
                .as_str()
                .is_some_and(|text| text.starts_with(start))
        };
        self.log.iter().find(says).expect("a line");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the port of an address.
pub(crate) fn port_of(address: &str) -> u16 {
    address
        .rsplit(':')
        .next()
        .and_then(|port| port.parse().ok())
        .expect("a port")
}

/// Sends a request to loopback and returns the whole answer. `head` is the request line and what
/// headers there are, each with CR LF at its end.
pub(crate) fn http(port: u16, head: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    let length = body.len();
    write!(
        stream,
        "{head}Host: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}
