use super::*;
use crate::conntrack::Settings;
use crate::control::sysctl;

fn layer(text: &str) -> Result<Layer, String> {
    Source { name: "x.toml".into(), text: text.into() }.layer().map_err(|errors| errors.to_string())
}

/// The message for a file that is wrong in one place.
fn wrong(text: &str) -> String {
    layer(text).expect_err("this file is wrong")
}

fn config(text: &str) -> Result<Config, String> {
    let source = Source { name: "x.toml".into(), text: text.into() };
    let layer = source.layer().map_err(|errors| errors.to_string())?;
    Config::from_layers(Layer::default(), Some((layer, source))).map_err(|errors| errors.to_string())
}

#[track_caller]
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "no {part:?} in:\n{message}");
    }
}

#[test]
fn a_whole_file_is_read() {
    let config = config(
        "lan = \"eth0\"\nwan = 'eth1'\nrules = \"/etc/r4\"\nrules6 = \"/etc/r6\"\nmode = \"zero-copy\"\ncores = \"2,4-5\"\n\
         poll = \"adaptive\"\nmetrics = \"[::1]:9630\"\ncontrol = \"/tmp/x.sock\"\nsysctl_from_kernel = true\n\
         [conntrack]\nnf_conntrack_max = 1_000\nnf_conntrack_checksum = false\n",
    )
    .expect("a good file");
    assert_eq!((config.lan.as_str(), config.wan.as_str()), ("eth0", "eth1"));
    assert_eq!((config.rules, config.rules6), (Some("/etc/r4".into()), Some("/etc/r6".into())));
    assert_eq!((config.mode, config.poll), (Mode::ZeroCopy, Poll::Adaptive));
    assert_eq!(config.workers, Workers::Cores("2,4,5".parse().expect("a list")));
    assert_eq!(config.metrics, Some("[::1]:9630".parse().expect("an address")));
    assert_eq!(config.control, PathBuf::from("/tmp/x.sock"));
    assert!(config.sysctl_from_kernel);
    assert_eq!(config.conntrack, [("nf_conntrack_max".to_owned(), 1000), ("nf_conntrack_checksum".to_owned(), 0)]);
}

#[test]
fn masquerading_is_for_the_versions_that_are_named() {
    let given = |value: &str| {
        let config = config(&format!("lan = 'a'\nwan = 'b'\nmasquerade = {value}\n")).expect("a good file");
        [Family::V4, Family::V6].map(|family| config.masquerade.is_for(family))
    };
    assert_eq!((given("true"), given("'ipv4'")), ([true, false], [true, false]));
    assert_eq!((given("false"), given("'no'")), ([false; 2], [false; 2]));
    assert_eq!((given("'both'"), given("'ipv6'")), ([true; 2], [false, true]));
    says(&wrong("masquerade = 'wan'"), &["masquerade = \"wan\"", "allowed: ipv4, ipv6, both, no"]);
    // The command line has the last word, also to say no.
    let layer = layer("masquerade = 'both'").expect("a good file");
    let no = Layer { masquerade: Some(Placed::option("--masquerade", Masquerade::No)), ..Layer::default() };
    assert_eq!(no.over(layer).masquerade.map(|it| it.value), Some(Masquerade::No));
}

#[test]
fn every_conntrack_setting_takes_its_default_and_nothing_of_another_kind() {
    for (name, value) in sysctl::values(&Settings::default()) {
        let given = layer(&format!("[conntrack]\n{name} = {value}")).expect("the default").conntrack;
        assert_eq!(given, [(name.clone(), value)]);
        for other in ["-1", "'x'", "1.5", "99999999999"] {
            says(&wrong(&format!("[conntrack]\n{name} = {other}")), &[&format!("{name} = "), "allowed: "]);
        }
    }
}

/// The example file as it is, and with every `# name = value` line brought in.
#[test]
fn the_example_file_shows_every_name_and_the_defaults() {
    let example = include_str!("../../../configs/xrouter.toml");
    let is_setting = |line: &str| line.split_once(" = ").is_some_and(|(name, _)| !name.contains(' '));
    let full: String = example
        .lines()
        .map(|line| {
            line.strip_prefix("# ").filter(|rest| is_setting(rest) && !rest.starts_with("cores")).unwrap_or(line)
        })
        .fold(String::new(), |text, line| text + line + "\n");
    let (plain, full) = (config(example).expect("the example"), config(&full).expect("with all lines"));
    assert_eq!((plain.lan.as_str(), plain.wan.as_str()), ("eth0", "eth1"));
    assert_eq!(full.rules, Some("/etc/xrouter/rules.v4".into()));
    assert_eq!(full.metrics, Some("127.0.0.1:9630".parse().expect("an address")));
    let Config { lan, wan, mode, poll, control, sysctl_from_kernel, .. } = plain;
    assert_eq!(
        (lan, wan, mode, poll, control, sysctl_from_kernel),
        (full.lan, full.wan, full.mode, full.poll, full.control, full.sysctl_from_kernel)
    );
    let defaults = sysctl::values(&Settings::default());
    assert!(full.conntrack.len() > 5 && full.conntrack.iter().all(|given| defaults.contains(given)));
    for name in file::TOP {
        assert!(example.contains(&format!("{name} = ")) || example.contains(&format!("[{name}]")), "no {name}");
    }
}

#[test]
fn the_least_file_gets_the_defaults() {
    let config = config("lan = 'a'\nwan = 'b'").expect("a good file");
    assert_eq!((config.mode, config.poll, config.workers), (Mode::Auto, Poll::Busy, Workers::Auto));
    assert_eq!((config.metrics, config.control), (None, PathBuf::from(DEFAULT_CONTROL)));
    assert_eq!((config.sysctl_from_kernel, config.conntrack), (false, Vec::new()));
}

#[test]
fn the_command_line_wins() {
    let below = layer("lan = 'a'\nwan = 'b'\nworkers = 2\nmode = 'copy'").expect("a good file");
    let source = Source { name: "x.toml".into(), text: String::new() };
    let above = Layer {
        lan: Some(Placed::option("--lan", "c".parse().expect("a name"))),
        workers: Some(Placed::option("--cores", Workers::Cores("1".parse().expect("a list")))),
        ..Layer::default()
    };
    let config = Config::from_layers(above, Some((below, source))).expect("a good pair");
    assert_eq!((config.lan.as_str(), config.wan.as_str(), config.mode), ("c", "b", Mode::Copy));
    assert_eq!(config.workers, Workers::Cores("1".parse().expect("a list")));
}

#[test]
fn unknown_keys_are_named_with_place_and_nearest() {
    says(&wrong("lan = 'a'\n\nruels = 'x'\n"), &["unknown key `ruels`; did you mean `rules`?", "x.toml:3:1"]);
    says(&wrong("zebra = 1"), &["unknown key `zebra`; allowed: lan, wan, rules"]);
    says(
        &wrong("[conntrack]\n  nf_conntrack_tcp_timeout_establishd = 5"),
        &["nf_conntrack_tcp_timeout_establishd", "did you mean `nf_conntrack_tcp_timeout_established`?", "x.toml:2:3"],
    );
    says(&wrong("[conntrack]\nmax = 5"), &["did you mean `nf_conntrack_max`?"]);
    says(&wrong("[conntrack]\nnf_conntrack_buckets = 5"), &["has no meaning here"]);
    says(&wrong("[conntrak]\nmax = 5"), &["did you mean `conntrack`?", "x.toml:1:2"]);
}

#[test]
fn every_problem_is_told_at_once() {
    let source = Source { name: "x.toml".into(), text: "lan = 3\nmode = 'fast'\nwam = 'b'\n".into() };
    let errors = source.layer().expect_err("three problems");
    assert_eq!(errors.len(), 3);
    says(&errors.to_string(), &["x.toml:1:7", "x.toml:2:8", "x.toml:3:1"]);
}

#[test]
fn values_that_are_not_allowed_say_what_is() {
    says(&wrong("mode = 'fast'"), &["mode = \"fast\"", "allowed: auto, zero-copy, copy, generic", "x.toml:1:8"]);
    says(&wrong("poll = ''"), &["poll = \"\"", "allowed: busy, adaptive"]);
    says(&wrong("lan = 1"), &["lan is of type integer", "a string in quotes"]);
    says(&wrong("lan = 'a/b'"), &["lan = \"a/b\"", "1 to 15 bytes without '/'"]);
    says(&wrong("wan = 'sixteen-letters-'"), &["wan = \"sixteen-letters-\"", "too long"]);
    says(&wrong("wan = ''"), &["is empty"]);
    says(&wrong("workers = 0"), &["workers = 0", "from 1 to"]);
    says(&wrong("workers = -1"), &["workers = -1"]);
    says(&wrong("workers = '2'"), &["workers is of type string", "a whole number"]);
    says(&wrong("cores = '1,x'"), &["cores = \"1,x\"", "`x` is not a CPU number", "2,4-7"]);
    says(&wrong("cores = '3-1'"), &["`3-1` runs backwards"]);
    says(&wrong("cores = '1,0-2'"), &["CPU 1 is named twice"]);
    says(&wrong("cores = ''"), &["`` is not a CPU number"]);
    says(&wrong("cores = '0-99999999'"), &["CPU 99999999 is beyond"]);
    says(&wrong("cores = [0, 'a']"), &["cores holds what is no CPU number"]);
    says(&wrong("workers = 1\ncores = '1'"), &["either workers or cores, not both", "x.toml:2:1"]);
    says(&wrong("metrics = '9630'"), &["metrics = \"9630\"", "ADDR:PORT"]);
    says(&wrong("metrics = '127.0.0.1:0'"), &["port 0"]);
    says(&wrong("rules = ''"), &["rules = \"\"", "path is empty"]);
    says(&wrong(&format!("control = '/{}'", "x".repeat(200))), &["201 bytes", "at most 107"]);
    says(&wrong("conntrack = 1"), &["allowed: a table, `[conntrack]`"]);
    says(&wrong("[conntrack]\nnf_conntrack_max = 0"), &["nf_conntrack_max = 0", "from 1 to", "x.toml:2:20"]);
    says(&wrong("[conntrack]\nnf_conntrack_checksum = 2"), &["nf_conntrack_checksum = 2", "true or false"]);
    says(&wrong("[conntrack]\nnf_conntrack_udp_timeout = '30s'"), &["nf_conntrack_udp_timeout = \"30s\""]);
    says(&wrong("sysctl_from_kernel = 'yes'"), &["sysctl_from_kernel = \"yes\"", "true or false"]);
}

#[test]
fn what_is_not_toml_says_where() {
    says(&wrong("lan = \n"), &["not TOML", "x.toml:1:"]);
    says(&wrong("lan = 'a'\nlan = 'b'"), &["not TOML", "duplicate key", "x.toml:2:"]);
    says(&wrong("\u{1}\u{fffd}["), &["not TOML"]);
}

#[test]
fn interfaces_must_be_two() {
    says(&config("lan = 'a'").expect_err("no wan"), &["--wan is missing"]);
    let both = config("").expect_err("neither");
    says(&both, &["--lan is missing", "--wan is missing"]);
    says(
        &config("lan = 'a'\nwan = 'a'").expect_err("the same"),
        &["wan = \"a\"", "lan is the same interface", "x.toml:2:7"],
    );
}

#[test]
fn cpu_lists_print_as_the_kernel_does() {
    let list = |text: &str| text.parse::<CpuList>().expect("a list").to_string();
    assert_eq!(list("7,4, 5,6,2"), "2,4-7");
    assert_eq!(list("0-1"), "0-1");
    assert_eq!(list("3"), "3");
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(
        text in "\\PC{0,80}|(lan|cores|\\[conntrack\\]|max| ?= ?|'|\"|\n|[0-9a-z,é\u{1F600}-]{1,4}){0,20}",
    ) {
        if let Err(message) = layer(&text) {
            proptest::prop_assert!(message.starts_with("error: "));
        }
    }

    #[test]
    fn cpu_lists_round_trip(cpus in proptest::collection::btree_set(0usize..200, 1..40)) {
        let text = cpus.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let list: CpuList = text.parse().expect("a list");
        proptest::prop_assert_eq!(list.cpus(), &cpus.into_iter().collect::<Vec<_>>()[..]);
        proptest::prop_assert_eq!(list.to_string().parse::<CpuList>().expect("its own notation"), list);
    }
}
