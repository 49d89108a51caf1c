use super::*;
use std::sync::Barrier;

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_fails_leaves_the_older_file_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    write_bytes(&path, b"old").unwrap();
    for kind in [ErrorKind::StorageFull, ErrorKind::FileTooLarge, ErrorKind::ReadOnlyFilesystem] {
        let e = write_whole(&path, |file| {
            file.write_all(b"half of the new")?;
            Err(kind.into())
        })
        .unwrap_err();
        assert_eq!(e.code, "R0206");
        assert_eq!(e.place.as_deref(), path.to_str());
        assert!(e.help.is_some(), "{e}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["a"]);
    }
    // Of a process that was killed.
    fs::write(dir.path().join("a.partial"), "a longer piece of another file").unwrap();
    write_bytes(&path, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(names(dir.path()), ["a"]);
}

#[test]
fn paths_that_cannot_be_files_say_what_is_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("file"), "").unwrap();
    fs::create_dir(at("folder")).unwrap();
    let fails = |path: PathBuf| {
        assert_eq!(can_write(&path).unwrap_err(), write_bytes(&path, b"x").unwrap_err());
        let e = write_bytes(&path, b"x").unwrap_err();
        assert_eq!((e.code, e.place.as_deref()), ("R0206", path.to_str()));
        e.help.unwrap_or_default().replace(dir.path().to_str().unwrap(), "DIR")
    };
    assert_eq!(fails(at("none/of/these")), "the folder `DIR/none` does not exist; make it");
    assert_eq!(fails(at("folder")), "that is a folder; name a file in it");
    assert_eq!(
        fails(at("file/a")),
        "`DIR/file` is a file, not a folder; name another path, or move it"
    );
    for path in [at("file"), at("file/a")] {
        let e = make_folder(&path).unwrap_err();
        assert_eq!(e.code, "R0206");
        assert!(e.help.unwrap().contains("is a file, not a folder"));
    }
    can_write(&at("file")).unwrap();
    can_write(&at("new")).unwrap();
    assert_eq!(names(dir.path()), ["file", "folder"]);
    // A folder where the unfinished file goes is named as such.
    fs::create_dir(at("b.partial")).unwrap();
    let e = write_bytes(&at("b"), b"x").unwrap_err();
    assert_eq!(e.place.as_deref(), at("b.partial").to_str());
    assert_eq!(names(dir.path()), ["b.partial", "file", "folder"]);
    make_folder(&at("folder/x/y")).unwrap();
    assert_eq!(names(&at("folder/x/y")), [""; 0]);
}

#[cfg(unix)]
#[test]
fn links_permissions_and_devices_stay() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("file"), dir.path().join("link"));
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    write_bytes(&link, b"new").unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"new");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o640);
    assert!(link.symlink_metadata().unwrap().is_symlink());
    let full = Path::new("/dev/full");
    if full.exists() {
        let e = write_bytes(full, b"x").unwrap_err();
        assert!(e.help.unwrap().contains("make room"), "{}", e.message);
        let e = Lines::open(full, true).unwrap().push("x").unwrap_err();
        assert_eq!(e.code, "R0206");
    }
}

#[test]
fn writers_of_one_file_take_turns() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let begin = Barrier::new(8);
    std::thread::scope(|s| {
        for i in 0..8u8 {
            let (path, begin) = (&path, &begin);
            s.spawn(move || {
                begin.wait();
                for _ in 0..20 {
                    write_whole(path, |file| (0..64).try_for_each(|_| file.write_all(&[i; 100])))
                        .unwrap();
                }
            });
        }
    });
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 6400);
    assert!(bytes.iter().all(|b| *b == bytes[0]));
    assert_eq!(names(dir.path()), ["a"]);
}

#[test]
fn lines_go_on_or_begin_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    Lines::open(&path, true).unwrap().push("1").unwrap();
    let mut log = Lines::open(&path, false).unwrap();
    log.push("2").unwrap();
    log.push("3").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "1\n2\n3\n");
    Lines::open(&path, true).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "");
}
