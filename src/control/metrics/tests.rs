use super::super::api::tests::Fake;
use super::super::stats;
use super::*;
use crate::verdict::DropReason;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write as _};

/// A page, read as strictly as the format's grammar has it: the families with their types, and every sample.
fn parse(page: &str) -> (BTreeMap<String, String>, BTreeMap<String, f64>) {
    let (mut types, mut samples, mut helped) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    let mut family = String::new();
    assert!(page.ends_with('\n'));
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help text");
            assert!(!help.is_empty() && helped.insert(name.to_owned()), "HELP twice: {name}");
            family = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert_eq!(name, family, "TYPE follows its HELP");
            assert!(matches!(kind, "counter" | "gauge"));
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "TYPE twice: {name}");
        } else {
            let (series, value) = sample(line);
            let name = series.split('{').next().expect("a name");
            assert_eq!(name, family, "samples stand under their family");
            assert!(samples.insert(series.to_owned(), value).is_none(), "the same series twice: {series}");
        }
    }
    (types, samples)
}

/// `name{label="value",…} number`.
fn sample(line: &str) -> (&str, f64) {
    let name_end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).expect("more than a name");
    let mut rest = &line[name_end..];
    if let Some(mut labels) = rest.strip_prefix('{') {
        loop {
            let (label, value) = labels.split_once("=\"").expect("a label");
            assert!(!label.is_empty() && label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
            let mut end = None;
            let mut escaped = false;
            for (at, c) in value.char_indices() {
                match (escaped, c) {
                    (true, '\\' | '"' | 'n') => escaped = false,
                    (true, other) => panic!("\\{other} is no escape: {line}"),
                    (false, '\\') => escaped = true,
                    (false, '"') => {
                        end = Some(at);
                        break;
                    }
                    _ => {}
                }
            }
            let after = &value[end.expect("a closing quote") + 1..];
            match after.strip_prefix(',') {
                Some(next) => labels = next,
                None => {
                    rest = after.strip_prefix('}').expect("a closing brace");
                    break;
                }
            }
        }
    }
    let value = rest.strip_prefix(' ').expect("a blank before the value").parse().expect("a number");
    (&line[..line.len() - rest.len()], value)
}

#[test]
fn the_page_is_well_formed_and_says_what_the_report_says() {
    let (types, samples) = parse(&render(&stats::sample()));
    assert_eq!(samples["xrouter_drops_total{reason=\"policy_drop\"}"], 14.0);
    for reason in DropReason::ALL {
        assert!(samples.contains_key(&format!("xrouter_drops_total{{reason=\"{reason}\"}}")), "{reason}");
    }
    assert_eq!(samples["xrouter_conntrack_entries{core=\"1\"}"], 21.0);
    assert_eq!(samples["node_nf_conntrack_entries"], 42.0);
    // It is one for all workers.
    assert_eq!(samples["node_nf_conntrack_entries_limit"], 1000.0);
    assert_eq!(samples["xrouter_interface_receive_packets_total{device=\"eth0\",queue=\"1\"}"], 1000.0);
    assert_eq!(samples["xrouter_xsk_rx_ring_full_total{device=\"eth1\",queue=\"0\"}"], 3.0);
    assert_eq!(samples["xrouter_worker_busy_ratio{core=\"0\"}"], 0.25);
    let rule = "xrouter_rule_packets_total{family=\"ipv4\",table=\"filter\",chain=\"FORWARD\",rule=";
    assert_eq!((samples[&format!("{rule}\"1\"}}")], samples[&format!("{rule}\"policy\"}}")]), (9.0, 9.0));
    for (name, kind) in types {
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
    }
}

#[test]
fn labels_are_escaped() {
    let mut report = stats::sample();
    report.rules[0].chain = "a\"b\\c\nd".into();
    let page = render(&report);
    assert!(page.contains("chain=\"a\\\"b\\\\c\\nd\""), "{page}");
    parse(&page);
}

#[test]
fn an_empty_report_is_still_a_page() {
    let (types, _) = parse(&render(&StatsReport::default()));
    assert!(types.contains_key("xrouter_drops_total") && !types.contains_key("xrouter_rule_packets_total"));
}

/// The status line and the body that the server answers to `request` with.
fn http(request: &'static str) -> (String, String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = bind("127.0.0.1:0".parse().expect("an address")).await.expect("any port");
        let address = listener.local_addr().expect("bound");
        let backend = Fake::new(0);
        let mut thread = tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(address).expect("it listens");
            stream.write_all(request.as_bytes()).expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("answered and closed");
            answer
        });
        let answer = tokio::select! {
            () = serve(listener, &backend) => unreachable!("it serves for ever"),
            answer = &mut thread => answer.expect("the client does not panic"),
        };
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        (head.to_owned(), body.to_owned())
    })
}

#[test]
fn only_get_of_the_page_is_served() {
    let (head, body) = http("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(parse(&body).1["xrouter_uptime_seconds"] > 0.0);
    assert!(http("GET /metrics?x=1 HTTP/1.0\r\n\r\n").0.contains(" 200 "));
    assert!(http("GET /else HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").0.starts_with("HTTP/1.1 404"));
    let (head, _) = http("POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 405") && head.to_lowercase().contains("allow: get"), "{head}");
    assert!(http("garbage\r\n\r\n").0.starts_with("HTTP/1.1 400"));
}

#[test]
fn an_address_in_use_is_told() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let failure = runtime.block_on(async {
        let first = bind("127.0.0.1:0".parse().expect("an address")).await.expect("any port");
        bind(first.local_addr().expect("bound")).await.expect_err("taken")
    });
    assert!(failure.message().starts_with("--metrics 127.0.0.1:") && failure.exit_code() == 1, "{failure}");
}
