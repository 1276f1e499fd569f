//! What the tests of the dataset are made of: pictures, zips, and a server that does what it is told.

use std::io::{Cursor, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel, sync_channel};
use std::sync::{Arc, Mutex};

use zip::write::SimpleFileOptions;

use crate::task::{Cancel, Level, LogLine, Task};

/// The skeleton of a JPEG: its markers, and a little coded data.
pub fn jpeg(width: u16, height: u16) -> Vec<u8> {
    let mut bytes =
        b"\xff\xd8\xff\xe0\x00\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0\xff\xc0\x00\x0b\x08".to_vec();
    bytes.extend(height.to_be_bytes());
    bytes.extend(width.to_be_bytes());
    bytes.extend(b"\x01\x01\x11\x00\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00coded\xff\x00data\xff\xd0more\xff\xd9");
    bytes
}

/// Another photo of the same size for each `shade`.
pub fn shaded_jpeg(shade: u8) -> Vec<u8> {
    let mut bytes = jpeg(64, 48);
    let end = bytes.len() - 3;
    bytes[end] = shade & 0x7f;
    bytes
}

/// The skeleton of a PNG.
pub fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
    bytes.extend(width.to_be_bytes());
    bytes.extend(height.to_be_bytes());
    bytes.extend(b"\x08\x02\0\0\0crc.\0\0\0\x04IDATdatacrc.\0\0\0\0IENDcrc.");
    bytes
}

pub fn zip_of<'a>(files: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        if name.ends_with('/') {
            writer
                .add_directory(name, SimpleFileOptions::default())
                .unwrap();
        } else {
            writer
                .start_file(name, SimpleFileOptions::default())
                .unwrap();
            writer.write_all(&content).unwrap();
        }
    }
    writer.finish().unwrap().into_inner()
}

/// A task, and what it said.
pub fn task() -> (Task<LogLine>, Receiver<LogLine>) {
    let (sender, receiver) = sync_channel(10_000);
    (Task::new(Cancel::default(), sender), receiver)
}

pub fn lines(receiver: &Receiver<LogLine>, level: Level) -> Vec<String> {
    receiver
        .try_iter()
        .filter(|line| line.level == level)
        .map(|line| line.text)
        .collect()
}

/// What the server does with one connection.
#[derive(Clone)]
pub enum Reply {
    /// Sends this and closes.
    Bytes(Vec<u8>),
    /// Sends this, and then a byte now and then, for as long as somebody takes it.
    Drip(Vec<u8>),
    /// Sends this, and then nothing, for good; says so by the sender.
    Silence(Vec<u8>, std::sync::mpsc::Sender<()>),
}

pub fn answer(head: &str, body: &[u8]) -> Reply {
    Reply::Bytes(
        [
            format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n").as_bytes(),
            body,
        ]
        .concat(),
    )
}

/// 200 with the body and its length.
pub fn ok(headers: &str, body: &[u8]) -> Reply {
    answer(
        &format!("200 OK\r\nContent-Length: {}{headers}", body.len()),
        body,
    )
}

/// A server on loopback that answers one connection after the other.
pub struct Server {
    pub address: String,
    requests: Arc<Mutex<Vec<String>>>,
    is_over: Arc<AtomicBool>,
}

impl Server {
    /// From a script, the last reply for ever.
    pub fn start(replies: Vec<Reply>) -> Self {
        Self::answering(move |number, _| replies[number.min(replies.len() - 1)].clone())
    }

    /// As `reply` says, which is told how many requests there were before, and this one's head in lower case.
    pub fn answering(mut reply: impl FnMut(usize, &str) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let is_over = Arc::new(AtomicBool::new(false));
        let (heard, is_dropped) = (Arc::clone(&requests), Arc::clone(&is_over));
        std::thread::spawn(move || {
            let mut open = Vec::new();
            for (number, stream) in listener.incoming().enumerate() {
                if is_dropped.load(Ordering::Relaxed) {
                    return;
                }
                let mut stream = stream.unwrap();
                let request = head_of(&mut stream);
                heard.lock().unwrap().push(request.clone());
                match reply(number, &request) {
                    Reply::Bytes(bytes) => {
                        let _ = stream.write_all(&bytes);
                    }
                    Reply::Drip(bytes) => {
                        let _ = stream.write_all(&bytes);
                        while stream.write_all(b".").is_ok() {
                            std::thread::sleep(std::time::Duration::from_millis(10));
                        }
                    }
                    Reply::Silence(bytes, reached) => {
                        let _ = stream.write_all(&bytes);
                        let _ = reached.send(());
                        open.push(stream);
                    }
                }
            }
        });
        Self {
            address,
            requests,
            is_over,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}/photos.zip", self.address)
    }

    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(&self.address);
    }
}

/// Somebody who waits for a server's silence, and the server's side of it.
pub fn silence(bytes: Vec<u8>) -> (Reply, Receiver<()>) {
    let (sender, receiver) = channel();
    (Reply::Silence(bytes, sender), receiver)
}

fn head_of(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).to_lowercase()
}
