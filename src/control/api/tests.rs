use super::super::stats;
use super::*;
use std::rc::Rc;

/// A backend with `count` connections, listed in pieces of three over two workers.
pub(crate) struct Fake {
    pub(crate) count: usize,
}

pub(crate) struct FakeConn {
    number: usize,
}

impl ListedConn for FakeConn {
    fn family(&self) -> Family {
        if self.number.is_multiple_of(2) { Family::V4 } else { Family::V6 }
    }
    fn proto(&self) -> u8 {
        if self.number.is_multiple_of(5) { 17 } else { 6 }
    }
    fn src(&self) -> Addr {
        match self.family() {
            Family::V4 => Addr::from_v4(0x0a00_0000 + self.number as u32),
            Family::V6 => Addr::from_v6((0xfd00 << 112) + self.number as u128),
        }
    }
    fn dst(&self) -> Addr {
        Addr::from_v4(0x0101_0101)
    }
    fn write_line(&self, extended: bool, line: &mut String) {
        line.push_str(if extended { "ipv4     2 " } else { "" });
        line.push_str(&format!("tcp      6 {}", self.number));
    }
    fn to_json(&self) -> serde_json::Value {
        serde_json::json!({ "number": self.number })
    }
}

impl Backend for Fake {
    type Conn = FakeConn;

    async fn stats(&self) -> Result<StatsReport, BackendError> {
        Ok(stats::sample())
    }

    async fn conntrack(&self, cursor: Cursor) -> Result<(Vec<FakeConn>, Option<Cursor>), BackendError> {
        if self.count > 1_000_000 {
            return Err(BackendError("worker 1 does not answer".into()));
        }
        let each = self.count / 2;
        let end = if cursor.worker == 0 { each } else { self.count - each };
        let upto = (cursor.position + 3).min(end);
        let conns = (cursor.position..upto).map(|n| FakeConn { number: cursor.worker * each + n }).collect();
        let next = match (upto == end, cursor.worker) {
            (false, worker) => Some(Cursor { worker, position: upto }),
            (true, 0) => Some(Cursor { worker: 1, position: 0 }),
            (true, _) => None,
        };
        Ok((conns, next))
    }

    async fn rules_text(&self, family: Family) -> Result<String, BackendError> {
        Ok(format!("*filter {family:?}\nCOMMIT\n"))
    }
}

/// A path for a socket in a directory of its own that goes away with the value.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let directory = std::env::temp_dir().join(format!("xr{}-{name}", std::process::id()));
        Place(directory)
    }
    fn socket(&self) -> PathBuf {
        self.0.join("deep/x.sock")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs `ask` in a thread of its own against a server with this many connections.
fn with_server<T: Send + 'static>(name: &str, count: usize, ask: impl FnOnce(&Path) -> T + Send + 'static) -> T {
    let place = Place::new(name);
    let path = place.socket();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let socket = ControlSocket::bind(&path).expect("a free path");
        assert_eq!(fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o660);
        let backend = Rc::new(Fake { count });
        let asked = path.clone();
        let mut thread = tokio::task::spawn_blocking(move || ask(&asked));
        let answer = tokio::select! {
            () = socket.serve(&*backend) => unreachable!("it serves for ever"),
            answer = &mut thread => answer.expect("the client does not panic"),
        };
        drop(socket);
        assert!(!path.exists(), "the socket's file is removed");
        answer
    })
}

fn raw(path: &Path, bytes: &[u8]) -> Vec<String> {
    let mut stream = std::os::unix::net::UnixStream::connect(path).expect("it listens");
    // The server may close before it has read all of a long request.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    BufReader::new(stream).lines().map_while(Result::ok).collect()
}

#[test]
fn stats_and_rules_are_answered() {
    let (stats, rules) = with_server("stats", 0, |path| {
        let mut client = Client::connect(path).expect("it listens");
        client.ask(&Request::Stats {}).expect("sent");
        let stats = client.answer().expect("an answer");
        client.ask(&Request::Rules { family: 6 }).expect("sent, on the same connection");
        (stats, client.answer().expect("an answer"))
    });
    let Reply::Stats(value) = stats else { panic!("{stats:?}") };
    assert_eq!(serde_json::from_value::<StatsReport>(value).expect("a report"), stats::sample());
    assert_eq!(rules, Reply::Rules("*filter V6\nCOMMIT\n".into()));
}

#[test]
fn a_listing_has_every_connection_once_and_an_end() {
    for count in [0, 1, 6, 7, 1000] {
        let lines = with_server(&format!("list{count}"), count, |path| raw(path, b"{\"verb\":\"conntrack\"}\n"));
        assert_eq!(lines.len(), count + 1);
        for (n, line) in lines[..count].iter().enumerate() {
            assert_eq!(line, &format!("{{\"line\":\"tcp      6 {n}\"}}"));
        }
        assert_eq!(lines[count], format!("{{\"end\":{{\"count\":{count}}}}}"));
    }
}

#[test]
fn listings_are_filtered_and_formed() {
    let request =
        b"{\"verb\":\"conntrack\",\"output\":\"json\",\"filter\":{\"family\":4,\"proto\":6,\"src\":\"10.0.0.0/29\"}}";
    let lines = with_server("filter", 20, |path| raw(path, request));
    assert_eq!(
        lines,
        [
            "{\"conn\":{\"number\":2}}",
            "{\"conn\":{\"number\":4}}",
            "{\"conn\":{\"number\":6}}",
            "{\"end\":{\"count\":3}}"
        ]
    );
    let request = b"{\"verb\":\"conntrack\",\"output\":\"extended\",\"filter\":{\"src\":\"fd00::3\"}}\n";
    let lines = with_server("extended", 9, |path| raw(path, request));
    assert_eq!(lines, ["{\"line\":\"ipv4     2 tcp      6 3\"}", "{\"end\":{\"count\":1}}"]);
}

#[test]
fn bad_requests_get_an_error_and_the_next_is_served() {
    let requests: [&[u8]; 7] = [
        b"garbage",
        b"",
        b"{\"verb\":\"dance\"}",
        b"\xff\xfe",
        b"{\"verb\":\"stats\",\"x\":1}",
        b"{\"verb\":\"rules\",\"family\":5}",
        b"{\"verb\":\"rules\"}",
    ];
    let lines = with_server("bad", 0, move |path| raw(path, &requests.join(&b'\n')));
    assert_eq!(lines.len(), 6, "{lines:?}");
    assert!(lines[..5].iter().all(|line| line.starts_with("{\"error\":")), "{lines:?}");
    assert!(lines[1].contains("dance"), "{}", lines[1]);
    assert!(lines[5].starts_with("{\"rules\":"));
}

#[test]
fn an_endless_request_is_cut_off() {
    let lines = with_server("long", 0, |path| raw(path, &vec![b'x'; 100_000]));
    assert_eq!(lines, ["{\"error\":\"request is longer than 4096 bytes\"}"]);
    // As long as allowed is still read.
    let mut longest = b"{\"verb\":\"rules\"}".to_vec();
    longest.resize(MAX_REQUEST - 1, b' ');
    longest.push(b'\n');
    let lines = with_server("longest", 0, move |path| raw(path, &longest));
    assert!(lines[0].starts_with("{\"rules\":"), "{lines:?}");
}

#[test]
fn a_silent_worker_is_an_error_for_the_client() {
    let failure = with_server("silent", 2_000_000, |path| {
        let mut client = Client::connect(path).expect("it listens");
        client.ask(&Request::Conntrack { output: Output::Text, filter: ConnFilter::default() }).expect("sent");
        client.answer().expect_err("the fake refuses")
    });
    assert!(failure.message().ends_with("says: worker 1 does not answer"), "{failure}");
    assert_eq!(failure.exit_code(), 1);
}

#[test]
fn nobody_listening_is_exit_code_4() {
    let place = Place::new("nobody");
    let failure = Client::connect(&place.socket()).expect_err("nobody there");
    assert_eq!(failure.exit_code(), 4);
    assert!(
        failure.message().contains("x.sock") && failure.message().contains("xrouter --lan IF --wan IF"),
        "{failure}"
    );
}

#[test]
fn paths_are_taken_over_only_from_the_dead() {
    let place = Place::new("path");
    let path = place.socket();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _inside = runtime.enter();
    let living = ControlSocket::bind(&path).expect("a free path");
    let refused = ControlSocket::bind(&path).expect_err("somebody lives there");
    assert!(refused.message().contains("another xrouter is running"), "{refused}");
    assert_eq!(refused.exit_code(), 1);
    assert!(path.exists());
    drop(living);
    // A dead daemon's: bound, then closed without removing the file.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("free again"));
    assert!(path.exists());
    drop(ControlSocket::bind(&path).expect("taken over"));
    fs::write(&path, "precious").expect("written");
    assert_eq!(ControlSocket::bind(&path).expect_err("no socket").exit_code(), 2);
    assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
}

#[test]
fn networks_are_read_strictly() {
    let inside = |network: &str, address: &str| {
        let address: IpAddr = address.parse().expect("an address");
        let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
        network.parse::<Network>().expect("a network").contains(family, address.into())
    };
    assert!(inside("10.0.0.0/8", "10.255.0.1") && !inside("10.0.0.0/8", "11.0.0.1"));
    assert!(inside("0.0.0.0/0", "1.2.3.4") && !inside("0.0.0.0/0", "::1") && !inside("::/0", "1.2.3.4"));
    assert!(inside("::/0", "fe80::1") && inside("1.2.3.4", "1.2.3.4") && !inside("1.2.3.4", "1.2.3.5"));
    for wrong in ["", "10", "10.0.0.0/33", "10.0.0.0/", "::/129", "host", "10.0.0.0/-1"] {
        assert!(wrong.parse::<Network>().is_err(), "{wrong}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600)) {
        let lines = with_server("fuzz", 2, move |path| raw(path, &bytes));
        for line in lines {
            proptest::prop_assert!(serde_json::from_str::<Reply>(&line).is_ok(), "{}", line);
        }
    }
}
