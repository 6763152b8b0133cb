//! Compiles the BPF programs with clang and leaves the objects in `OUT_DIR`, where `src/xdp/program.rs` and
//! those of `bench/` embed them.

use libbpf_cargo::SkeletonBuilder;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

/// The XDP program, and the packet generator and the sink of `bench/`.
const SOURCES: [&str; 3] = ["bpf/xrouter.bpf.c", "bench/generator/generator.bpf.c", "bench/sink/sink.bpf.c"];

fn main() {
    println!("cargo:rerun-if-changed=bpf");
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
    }
    println!("cargo:rerun-if-env-changed=CLANG");
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    if let Err(error) = Command::new(&clang).arg("--version").output() {
        fail(&format!(
            "the XDP program is compiled with clang, and `{clang}` does not start: {error}\n\
             install it (Debian: apt-get install clang libelf-dev zlib1g-dev m4 pkg-config make), \
             or name another one in the environment variable CLANG"
        ));
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut arguments = vec!["-Wall".to_string(), "-Wextra".into(), "-Werror".into(), "-mcpu=v3".into()];
    // The headers of <asm/> live in a folder per architecture on Debian and its like.
    let multiarch = format!("/usr/include/{}-linux-gnu", env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default());
    if Path::new(&multiarch).is_dir() {
        arguments.push(format!("-I{multiarch}"));
    }
    for source in SOURCES {
        let object = Path::new(source).with_extension("o");
        let object = out.join(object.file_name().expect("a source is a file"));
        let built = SkeletonBuilder::new().source(source).obj(object).clang(&clang).clang_args(&arguments).build();
        if let Err(error) = built {
            fail(&format!("cannot compile {source}: {error:#}"));
        }
    }
}

#[allow(clippy::exit)] // a build script's way to stop with a message and no backtrace
fn fail(message: &str) -> ! {
    for line in message.lines() {
        println!("cargo:warning={line}");
    }
    eprintln!("error: {message}");
    exit(1)
}
