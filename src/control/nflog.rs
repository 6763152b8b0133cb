//! Where copies of packets go that met an NFLOG rule: [`NflogWriter`], into a pcapng file, or over a Unix socket that somebody
//! (tshark, say, behind socat) listens on.
//!
//! A file is made anew at start and written to until the end. A write that fails never stops the router: the first is told in the
//! log, and from then on copies are dropped, and their number told at the end. A listener that does not read gets no more, either:
//! the control thread waits for nobody. What the worker could not hand over is counted there (`nflog_lost`).

use std::borrow::Cow;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::{DataLink, PcapError};

use super::startup::Failure;
use crate::device::PortId;
use crate::rules::{self, NflogRecord};

/// How long a listener may take to read what is written at a time.
const PATIENCE: Duration = Duration::from_millis(100);
/// Bytes collected before they are written.
const BUFFER: usize = 1 << 18;

/// See the module's head.
pub struct NflogWriter {
    name: String,
    /// `None` once a write has failed.
    out: Option<PcapNgWriter<BufWriter<Box<dyn Write>>>>,
    lost: u64,
}

impl fmt::Debug for NflogWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NflogWriter({}, {} lost)", self.name, self.lost)
    }
}

impl NflogWriter {
    /// Makes the file that `--nflog` names, or connects to the socket that it is.
    ///
    /// # Errors
    /// When the file cannot be made, or nobody listens on the socket.
    pub fn open(path: &Path) -> Result<NflogWriter, Failure> {
        let name = format!("--nflog {}", path.display());
        let is_socket = fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
        let out: Box<dyn Write> = if is_socket {
            let failed = |error| Failure::Usage(format!("{name}: nobody listens on this socket: {error}"));
            let stream = UnixStream::connect(path).map_err(failed)?;
            stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
            Box::new(stream)
        } else {
            let failed = |error| Failure::Usage(format!("{name}: cannot create the file: {error}"));
            Box::new(File::create(path).map_err(failed)?)
        };
        let writer = begin(BufWriter::with_capacity(BUFFER, out));
        let writer = writer.map_err(|error| Failure::Running(format!("{name}: cannot write: {}", reason(&error))))?;
        Ok(NflogWriter { name, out: Some(writer), lost: 0 })
    }

    /// Adds a copy, taken at `since_1970`.
    pub fn write(&mut self, record: &NflogRecord, since_1970: Duration) {
        let Some(out) = &mut self.out else {
            self.lost += 1;
            return;
        };
        if let Err(error) = out.write_pcapng_block(rules::packet_block(record, since_1970)) {
            self.lost += 1;
            self.give_up(&reason(&error));
        }
    }

    /// Writes what has been collected.
    pub fn flush(&mut self) {
        let Some(out) = &mut self.out else { return };
        if let Err(error) = out.get_mut().flush() {
            self.give_up(&error.to_string());
        }
    }

    /// Copies that were dropped since a write failed.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    fn give_up(&mut self, why: &str) {
        tracing::error!("{}: cannot write: {why}; no more copies are written until a restart", self.name);
        // What was not written yet would be tried again when it is dropped.
        if let Some(out) = self.out.take() {
            let _ = out.into_inner().into_parts();
        }
    }
}

impl Drop for NflogWriter {
    fn drop(&mut self) {
        self.flush();
        if self.lost > 0 {
            tracing::warn!("{}: {} copies were not written", self.name, self.lost);
        }
    }
}

/// The head of the stream: an interface for each port, with nanoseconds.
fn begin(out: BufWriter<Box<dyn Write>>) -> Result<PcapNgWriter<BufWriter<Box<dyn Write>>>, PcapError> {
    let mut writer = PcapNgWriter::new(out)?;
    for port in PortId::ALL {
        let options = vec![
            InterfaceDescriptionOption::IfName(Cow::Owned(format!("{port:?}"))),
            InterfaceDescriptionOption::IfTsResol(9),
        ];
        let interface = InterfaceDescriptionBlock { linktype: DataLink::ETHERNET, snaplen: 0, options };
        writer.write_pcapng_block(interface)?;
    }
    writer.get_mut().flush().map_err(PcapError::IoError)?;
    Ok(writer)
}

fn reason(error: &PcapError) -> String {
    match error {
        PcapError::IoError(error) => error.to_string(),
        other => other.to_string(),
    }
}
