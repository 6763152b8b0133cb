//! The metrics page: a [`StatsReport`] as Prometheus text, served over HTTP at `/metrics`.
//!
//! Format: <https://prometheus.io/docs/instrumenting/exposition_formats/> (text, version 0.0.4). Names follow
//! node_exporter where it has one; each family has its HELP and TYPE once, before its samples. The server runs on the
//! control thread's own runtime: a slow or silent client costs a slot, never a packet.

use std::convert::Infallible;
use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use super::api::Backend;
use super::startup::Failure;
use super::stats::{StatsReport, WorkerReport};

/// Most clients served at a time; more wait in the listen queue.
const MAX_CLIENTS: usize = 16;

/// How long a client may take to say what it wants.
const REQUEST_TIME: Duration = Duration::from_secs(10);

/// How long one connection may live.
const CONNECTION_TIME: Duration = Duration::from_secs(300);

/// Listens at `address`.
///
/// # Errors
/// When the address is in use, not ours, or not permitted.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::Running(format!(
            "--metrics {address}: cannot listen there: {error}. Give an address of this host that is free"
        ))
    })
}

/// Answers scrapes until dropped.
pub async fn serve<B: Backend>(listener: TcpListener, backend: &B) {
    let mut clients = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if clients.len() < MAX_CLIENTS => match accepted {
                Ok((stream, _)) => clients.push(client(stream, backend)),
                Err(error) => {
                    // Out of descriptors, most likely: wait for one rather than spin.
                    tracing::warn!("metrics: cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            },
            Some(()) = clients.next(), if !clients.is_empty() => {}
        }
    }
}

/// One connection, from its first byte to its end.
async fn client<B: Backend>(stream: TcpStream, backend: &B) {
    let service = service_fn(async |request: Request<Incoming>| Ok::<_, Infallible>(answer(&request, backend).await));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIME)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    // What a client does wrong is its own affair: hyper has answered it, or it has gone.
    let _ = tokio::time::timeout(CONNECTION_TIME, connection).await;
}

/// The response to a request.
async fn answer<B: Backend>(request: &Request<Incoming>, backend: &B) -> Response<Full<Bytes>> {
    let known = matches!(request.uri().path(), "/metrics" | "/");
    let (status, kind, body) = match (known, request.method()) {
        (false, _) => (StatusCode::NOT_FOUND, "text/plain", "nothing here; try /metrics\n".to_owned()),
        (true, &Method::GET) if request.uri().path() == "/" => {
            (StatusCode::OK, "text/html", "<a href=\"/metrics\">xrouter metrics</a>\n".to_owned())
        }
        (true, &Method::GET) => match backend.stats().await {
            Ok(report) => (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", render(&report)),
            Err(error) => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{error}\n")),
        },
        (true, _) => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    }
    response
}

/// The page for a report.
pub fn render(report: &StatsReport) -> String {
    let mut page = Page(String::with_capacity(16 * 1024));
    about(&mut page, report);
    drops(&mut page, report);
    conntrack(&mut page, report);
    interfaces(&mut page, report);
    sockets(&mut page, report);
    workers(&mut page, report);
    rules(&mut page, report);
    page.0
}

/// What a family's samples are.
#[derive(Clone, Copy)]
enum Type {
    Counter,
    Gauge,
}

/// The text as it grows.
struct Page(String);

impl Page {
    /// One metric family: HELP, TYPE, and a sample for each set of labels. Without samples, nothing.
    fn family<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        kind: Type,
        samples: impl IntoIterator<Item = ([(&'static str, String); N], f64)>,
    ) {
        let kind = match kind {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
        };
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        self.line(format_args!("# HELP {name} {}", Escaped { text: help, quotes: false }));
        self.line(format_args!("# TYPE {name} {kind}"));
        for (labels, value) in samples {
            self.line(format_args!("{name}{} {value}", Labels(&labels)));
        }
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("a String takes whatever is written");
    }
}

/// `{name="value",…}`, or nothing without labels.
struct Labels<'a>(&'a [(&'static str, String)]);

impl fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (name, value)) in self.0.iter().enumerate() {
            let before = if n == 0 { '{' } else { ',' };
            write!(f, "{before}{name}=\"{}\"", Escaped { text: value, quotes: true })?;
        }
        if self.0.is_empty() { Ok(()) } else { f.write_str("}") }
    }
}

/// Text with backslash, line feed and (in a label) quotes escaped.
struct Escaped<'a> {
    text: &'a str,
    quotes: bool,
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.text.chars() {
            match c {
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                '"' if self.quotes => f.write_str("\\\"")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

fn about(page: &mut Page, report: &StatsReport) {
    let build = [
        ("version", report.build.version.clone()),
        ("profile", report.build.profile.clone()),
        ("arch", report.build.arch.clone()),
        ("mode", report.mode.clone()),
    ];
    page.family("xrouter_build_info", "Always 1; the labels say what is running.", Type::Gauge, [(build, 1.0)]);
    let single = |value: u64| [([], value as f64)];
    page.family("xrouter_uptime_seconds", "Seconds since start-up.", Type::Gauge, single(report.uptime_seconds));
    page.family(
        "xrouter_policy_generation",
        "How often rules have been published.",
        Type::Gauge,
        single(report.policy_generation),
    );
    page.family(
        "xrouter_reloads_refused_total",
        "Reloads that changed nothing, because a file was wrong or a worker did not answer.",
        Type::Counter,
        single(report.reloads_refused),
    );
    page.family(
        "xrouter_routing_generation",
        "How often routes have been published.",
        Type::Gauge,
        single(report.routing_generation),
    );
}

fn drops(page: &mut Page, report: &StatsReport) {
    let drops = report.drops();
    let samples = drops.iter().map(|(reason, count)| ([("reason", reason.to_owned())], count as f64));
    page.family("xrouter_drops_total", "Packets dropped, by reason.", Type::Counter, samples);
}

/// A sample per worker.
fn per_core(report: &StatsReport, value: impl Fn(&WorkerReport) -> f64) -> Vec<([(&'static str, String); 1], f64)> {
    report.workers.iter().map(|worker| ([("core", worker.core.to_string())], value(worker))).collect()
}

fn conntrack(page: &mut Page, report: &StatsReport) {
    let entries = per_core(report, |worker| worker.conntrack.entries as f64);
    page.family("xrouter_conntrack_entries", "Connections in the table.", Type::Gauge, entries);
    let limit = per_core(report, |worker| worker.conntrack.limit as f64);
    page.family("xrouter_conntrack_entries_limit", "The most connections the table holds.", Type::Gauge, limit);
    for (n, (name, _)) in report.conntrack().counters().iter().enumerate() {
        let samples = per_core(report, |worker| worker.conntrack.counters()[n].1 as f64);
        let help = format!("Connection tracking's counter {name}, as conntrack -S names it.");
        page.family(&format!("xrouter_conntrack_{name}_total"), &help, Type::Counter, samples);
    }
    // node_exporter's names, so that alerts written for the kernel's table hold for this one.
    let sum = report.conntrack();
    let single = |value: u64| [([], value as f64)];
    let help = "As node_exporter names it: currently allocated flow entries.";
    page.family("node_nf_conntrack_entries", help, Type::Gauge, single(sum.entries));
    let help = "As node_exporter names it: maximum size of the table.";
    page.family("node_nf_conntrack_entries_limit", help, Type::Gauge, single(sum.limit));
}

fn interfaces(page: &mut Page, report: &StatsReport) {
    let port = |value: fn(&super::stats::PortReport) -> f64| {
        report.ports.iter().map(move |port| ([("device", port.device.clone())], value(port)))
    };
    page.family(
        "xrouter_interface_up",
        "1 when the link is up.",
        Type::Gauge,
        port(|port| f64::from(u8::from(port.up))),
    );
    page.family("xrouter_interface_mtu_bytes", "Largest packet.", Type::Gauge, port(|port| f64::from(port.mtu)));
    type Value = fn(&super::stats::QueueReport) -> u64;
    let families: [(&str, &str, Value); 4] = [
        ("receive_packets", "Packets received.", |queue| queue.received.packets),
        ("receive_bytes", "Bytes received.", |queue| queue.received.bytes),
        ("transmit_packets", "Packets given to the driver.", |queue| queue.transmitted.packets),
        ("transmit_bytes", "Bytes given to the driver.", |queue| queue.transmitted.bytes),
    ];
    for (name, help, value) in families {
        per_queue(page, report, &format!("xrouter_interface_{name}_total"), help, value);
    }
}

/// A counter with a sample per queue.
fn per_queue(
    page: &mut Page,
    report: &StatsReport,
    name: &str,
    help: &str,
    value: impl Fn(&super::stats::QueueReport) -> u64,
) {
    let samples = report.queues().map(|queue| {
        let labels = [("device", queue.device.clone()), ("queue", queue.queue.to_string())];
        (labels, value(queue) as f64)
    });
    page.family(name, help, Type::Counter, samples);
}

fn sockets(page: &mut Page, report: &StatsReport) {
    let names = super::stats::XskReport::default().fields();
    for (n, (name, _)) in names.into_iter().enumerate() {
        let help = format!("The kernel's counter {name} of the AF_XDP socket (XDP_STATISTICS).");
        per_queue(page, report, &format!("xrouter_xsk_{name}_total"), &help, |queue| queue.xsk.fields()[n].1);
    }
    let help = "Packets longer than a frame, dropped because no large frame was free.";
    per_queue(page, report, "xrouter_rx_no_large_frame_total", help, |queue| queue.rx_no_large_frame);
    let help = "Packets dropped because longer than a large frame, which the MTUs at start fit.";
    per_queue(page, report, "xrouter_rx_too_long_total", help, |queue| queue.rx_too_long);
    per_queue(page, report, "xrouter_xsk_wakeups_total", "System calls to wake the driver.", |queue| queue.wakeups);
}

fn workers(page: &mut Page, report: &StatsReport) {
    type Value = fn(&WorkerReport) -> f64;
    let families: [(&str, &str, Type, Value); 13] = [
        ("xrouter_forwarded_packets_total", "Packets forwarded.", Type::Counter, |w| w.forwarded as f64),
        ("xrouter_punted_packets_total", "Packets given to the host's stack.", Type::Counter, |w| w.punted as f64),
        ("xrouter_held_packets_total", "Packets that waited for a neighbour.", Type::Counter, |w| w.held as f64),
        ("xrouter_waiting_packets", "Packets waiting for a neighbour now.", Type::Gauge, |w| w.waiting as f64),
        ("xrouter_handover_packets_total", "Packets given to other workers.", Type::Counter, |w| w.handed_over as f64),
        ("xrouter_takeover_packets_total", "Packets that other workers gave.", Type::Counter, |w| w.taken_over as f64),
        ("xrouter_reply_packets_total", "Packets the router made itself.", Type::Counter, |w| w.replies as f64),
        ("xrouter_log_lost_total", "Log lines beyond the rate limit.", Type::Counter, |w| w.log_lost as f64),
        ("xrouter_nflog_lost_total", "NFLOG copies nobody took in time.", Type::Counter, |w| w.nflog_lost as f64),
        ("xrouter_worker_bursts_total", "Bursts with packets in them.", Type::Counter, |w| w.bursts as f64),
        ("xrouter_worker_busy_ratio", "Share of polls that found packets, 0 to 1.", Type::Gauge, |w| w.busy_ratio),
        ("xrouter_worker_free_frames", "Frames nobody uses now.", Type::Gauge, |w| w.free_frames as f64),
        ("xrouter_worker_free_large_frames", "Large frames nobody uses now.", Type::Gauge, |w| {
            w.free_large_frames as f64
        }),
    ];
    for (name, help, kind, value) in families {
        page.family(name, help, kind, per_core(report, value));
    }
}

fn rules(page: &mut Page, report: &StatsReport) {
    let samples = |value: fn(&super::stats::Traffic) -> u64| {
        report.rules.iter().map(move |rule| {
            let labels = [
                ("family", if rule.family == 6 { "ipv6" } else { "ipv4" }.to_owned()),
                ("table", rule.table.clone()),
                ("chain", rule.chain.clone()),
                ("rule", rule.label()),
            ];
            (labels, value(&rule.matched) as f64)
        })
    };
    let help = "Packets a rule matched; `policy` is the chain's policy.";
    page.family("xrouter_rule_packets_total", help, Type::Counter, samples(|matched| matched.packets));
    let help = "Bytes a rule matched; `policy` is the chain's policy.";
    page.family("xrouter_rule_bytes_total", help, Type::Counter, samples(|matched| matched.bytes));
}

#[cfg(test)]
mod tests;
