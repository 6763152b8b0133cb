//! How `xrouter conntrack` writes connections and events: [`Printer`], and moments as people read them.

use std::fs;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Datelike, Local, Timelike};

use super::{ConntrackArgs, Form};
use crate::conntrack::{ConnView, LineOptions, XML_HEAD, XML_TAIL};
use crate::control::api::EventReport;
use crate::time::SECOND_NS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Text,
    Proc,
    Xml,
    Json,
}

/// Writes one after the other in the form that was asked for.
#[derive(Debug)]
pub(super) struct Printer {
    shape: Shape,
    options: LineOptions,
    /// `-o timestamp`.
    time: bool,
    /// Elements stand in a document: `-D` has none.
    document: bool,
    begun: bool,
    line: String,
}

impl Printer {
    /// `uses` is what stands after `use=`.
    pub(super) fn new(args: &ConntrackArgs, uses: u8) -> Printer {
        let has = |form| args.output.contains(&form);
        let shape = match () {
            () if args.proc => Shape::Proc,
            () if has(Form::Json) => Shape::Json,
            () if has(Form::Xml) => Shape::Xml,
            () => Shape::Text,
        };
        let local_time = has(Form::Ktimestamp).then_some(local_time as fn(u64) -> String);
        let options = LineOptions { extended: has(Form::Extended), id: has(Form::Id), uses, now: 0, local_time };
        let (time, document) = (has(Form::Timestamp), !args.delete);
        Printer { shape, options, time, document, begun: false, line: String::new() }
    }

    /// A connection.
    pub(super) fn conn(&mut self, out: &mut dyn Write, conn: &ConnView) -> io::Result<()> {
        self.begin(out)?;
        let now = now();
        self.options.now = now / SECOND_NS;
        self.line.clear();
        match self.shape {
            Shape::Text => conn.write_line(&mut self.line, &self.options),
            Shape::Proc => conn.write_proc(&mut self.line, now),
            Shape::Xml => conn.write_xml(&mut self.line, None, "", &self.options),
            Shape::Json => self.line = serde_json::to_string(conn)?,
        }
        writeln!(out, "{}", self.line)
    }

    /// An event.
    pub(super) fn event(&mut self, out: &mut dyn Write, event: &EventReport) -> io::Result<()> {
        self.begin(out)?;
        self.options.now = now() / SECOND_NS;
        self.line.clear();
        match self.shape {
            Shape::Xml => {
                let when = if self.time { when(event.time) } else { String::new() };
                event.conn.write_xml(&mut self.line, Some(event.kind), &when, &self.options);
            }
            Shape::Json => self.line = serde_json::to_string(event)?,
            Shape::Text | Shape::Proc => {
                if self.time {
                    let (seconds, micros) = (event.time / SECOND_NS, event.time % SECOND_NS / 1000);
                    write!(out, "[{seconds}.{micros:06}]\t")?;
                }
                event.conn.write_event(&mut self.line, event.kind, &self.options);
                if let Some(pid) = event.portid {
                    self.line += &format!(" [USERSPACE] portid={pid}");
                    // It may be gone by now.
                    if let Ok(name) = fs::read_to_string(format!("/proc/{pid}/comm")) {
                        self.line += &format!(" progname={}", name.trim_end());
                    }
                }
            }
        }
        writeln!(out, "{}", self.line)
    }

    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if !self.begun && self.shape == Shape::Xml && self.document {
            writeln!(out, "{XML_HEAD}")?;
        }
        self.begun = true;
        Ok(())
    }

    /// After the last one.
    pub(super) fn finish(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if self.begun && self.shape == Shape::Xml && self.document {
            writeln!(out, "{XML_TAIL}")?;
        }
        Ok(())
    }
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

fn local(seconds: u64) -> DateTime<Local> {
    let moment = i64::try_from(seconds).ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    moment.unwrap_or_default().with_timezone(&Local)
}

/// As asctime(3) writes it.
fn local_time(seconds: u64) -> String {
    local(seconds).format("%a %b %e %H:%M:%S %Y").to_string()
}

/// The element that `-o xml,timestamp` adds.
fn when(ns: u64) -> String {
    let at = local(ns / SECOND_NS);
    format!(
        "<when><hour>{}</hour><min>{:02}</min><sec>{:02}</sec><wday>{}</wday><day>{}</day><month>{}</month><year>{}</year>\
         </when>",
        at.hour(),
        at.minute(),
        at.second(),
        at.weekday().number_from_sunday(),
        at.day(),
        at.month(),
        at.year()
    )
}
