//! What people expect of a command: completions, manual pages, colours.

use super::lab::Lab;
use super::{code, command, precast, stderr, stdout};

/// Names of the subcommands, from the help.
fn subcommands() -> Vec<String> {
    let help = stdout(&precast(&["--help"]));
    let (_, list) = help.split_once("Commands:\n").expect("a list");
    let (list, _) = list.split_once("\n\n").expect("options behind it");
    list.lines()
        .filter(|l| l.starts_with("  ") && !l.starts_with("   "))
        .map(|l| l.split_whitespace().next().expect("a name").to_string())
        .filter(|name| name != "help")
        .collect()
}

#[test]
fn completions_know_every_command_and_option() {
    let names = subcommands();
    assert!(names.len() > 12 && names.contains(&"train".to_string()), "{names:?}");
    for shell in ["bash", "zsh", "fish"] {
        let o = precast(&["completions", shell]);
        assert_eq!(code(&o), 0, "{}", stderr(&o));
        let script = stdout(&o);
        for name in &names {
            assert!(script.contains(name.as_str()), "{shell} lacks {name}");
        }
        for option in ["resume", "set", "policy", "quiet"] {
            assert!(script.contains(option), "{shell} lacks {option}");
        }
    }
    assert_eq!(code(&precast(&["completions", "cmd"])), 2);
}

/// Bash itself completes by the script.
#[test]
fn bash_completes() {
    if std::process::Command::new("bash").arg("--version").output().is_err() {
        return;
    }
    let lab = Lab::new();
    lab.write("precast.bash", &stdout(&precast(&["completions", "bash"])));
    let script = "source ./precast.bash; COMP_WORDS=(precast tr); COMP_CWORD=1; \
                  _precast precast tr precast; echo \"${COMPREPLY[@]}\"; \
                  COMP_WORDS=(precast train --res); COMP_CWORD=2; \
                  _precast precast --res train; echo \"${COMPREPLY[@]}\"";
    let o = std::process::Command::new("bash")
        .args(["-c", script])
        .current_dir(lab.dir.path())
        .output()
        .expect("bash runs");
    assert_eq!(stdout(&o), "train\n--resume --resume-changed\n", "{}", stderr(&o));
}

#[test]
fn every_command_has_a_manual_page() {
    let lab = Lab::new();
    lab.ok(&["man", "man1"]);
    let whole = lab.text("man1/precast.1");
    for name in subcommands() {
        assert!(whole.contains(&name), "{name}");
        let page = lab.text(&format!("man1/precast-{name}.1"));
        assert!(page.contains(".SH NAME") && page.contains(".SH OPTIONS"), "{name}");
        assert!(page.contains("quiet"), "{name} lacks the options of the whole");
    }
    assert!(lab.text("man1/precast-train.1").contains("resume"));
    lab.write("file", "");
    assert_eq!(lab.fails(&["man", "file/man1"]).0, "R0206");
}

#[test]
fn colours_follow_the_environment() {
    let said = |set: &[(&str, &str)]| {
        let mut c = command(&["check", "gone.toml"]);
        for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
            c.env_remove(name);
        }
        c.envs(set.iter().copied());
        stderr(&c.output().expect("the binary runs"))
    };
    let plain = said(&[]);
    assert!(plain.starts_with("error[P0100]: "), "no terminal, no colours: {plain:?}");
    let forced = said(&[("CLICOLOR_FORCE", "1")]);
    assert!(forced.starts_with("\u{1b}[1;31merror[P0100]\u{1b}[0m\u{1b}[1m: "), "{forced:?}");
    assert_eq!(said(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]), plain);
}
