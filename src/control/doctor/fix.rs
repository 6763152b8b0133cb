//! Mending: runs the safe commands of a report's lines, one after another, and says what came of each.

use std::process::{Command, Stdio};

use super::{Fix, Level, Line, Report};

/// Runs what `--fix` may run, as root's shell would; a sentence for each command. Lines that are ok are left alone.
pub fn mend(report: &Report) -> Vec<String> {
    let mut told = Vec::new();
    let mut done: Vec<&str> = Vec::new();
    for Line { level, subject, topic, fix, .. } in &report.lines {
        let Some(Fix { command, safe }) = fix else { continue };
        if *level == Level::Ok || done.contains(&command.as_str()) {
            continue;
        }
        let outcome = match safe {
            true => run(command),
            false => "for you to do".to_owned(),
        };
        done.push(command);
        told.push(format!("{subject} {topic}: {command}: {outcome}"));
    }
    told
}

/// What a command came to. `xrouter` is this program, wherever it lies.
fn run(command: &str) -> String {
    let mut shell = Command::new("/bin/sh");
    match (command.strip_prefix("xrouter "), std::env::current_exe()) {
        (Some(words), Ok(program)) => shell.arg("-c").arg(format!("exec \"$0\" {words}")).arg(program),
        _ => shell.arg("-c").arg(command),
    };
    match shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output() {
        Err(error) => format!("cannot be run: {error}"),
        Ok(output) if output.status.success() => "done".to_owned(),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            format!("failed ({}){}{said}", output.status, if said.is_empty() { "" } else { ": " })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::SCHEMA;
    use super::*;

    #[test]
    fn only_safe_commands_are_run_and_each_once() {
        let folder = std::env::temp_dir().join(format!("xrfix{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder of ours");
        let at = |name: &str| folder.join(name).display().to_string();
        let touch = |name: &str| format!("echo x >> {}", at(name));
        let lines = vec![
            Line::warning("lan", "one", "").mended_by(touch("safe")),
            Line::warning("wan", "two", "").mended_by(touch("safe")),
            Line::problem("lan", "three", "").for_the_operator(touch("other")),
            Line::ok("lan", "four", "").mended_by(touch("ok")),
            Line::problem("lan", "five", "").mended_by("echo no >&2; exit 3"),
            Line::problem("lan", "six", ""),
        ];
        let told = mend(&Report { schema: SCHEMA, lines });
        assert_eq!(std::fs::read_to_string(at("safe")).expect("made"), "x\n");
        assert!(!folder.join("other").exists() && !folder.join("ok").exists());
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].ends_with(": done") && told[1].ends_with(": for you to do"), "{told:?}");
        assert!(told[2].contains("exit status: 3") && told[2].ends_with(": no"), "{told:?}");
        std::fs::remove_dir_all(&folder).expect("ours");
    }
}
