//! The free functions of `fs`: the same results as `std::fs` on real files, and the same on
//! simulated ones where these have a meaning.

use std::cell::Cell;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use coralio::fs as co;
use coralio::task::OsCode;
use coralio::{File, spawn, yield_now};

use crate::{Temp, disk, everywhere, on_each_backend, on_real_files, sim_of};

/// A directory that is removed on drop, with all that is in it.
struct Folder(PathBuf);

impl Folder {
    fn at(place: &Path) -> Folder {
        let path = Temp::at(place).0.clone();
        co::create_dir(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn kind<T>(result: io::Result<T>) -> ErrorKind {
    result.err().expect("an error").kind()
}

/// Returns the sorted names in a directory.
fn names(folder: &Path) -> Vec<String> {
    let entries = co::read_dir(folder).unwrap().map(Result::unwrap);
    let mut names: Vec<_> = entries
        .map(|entry| {
            assert_eq!(entry.path(), folder.join(entry.file_name()));
            entry.file_name().to_str().unwrap().to_string()
        })
        .collect();
    names.sort();
    names
}

#[test]
fn directories_are_created_listed_and_removed() {
    // E19: directories behave as std's, on real and on simulated disks
    everywhere(|place, _| {
        let folder = Folder::at(place);
        let at = |name: &str| folder.0.join(name);
        assert_eq!(kind(co::create_dir(&folder.0)), ErrorKind::AlreadyExists);
        co::create_dir_all(at("a/b/c")).unwrap();
        co::create_dir_all(at("a/b")).unwrap();
        co::write(at("a/file"), "text").unwrap();
        assert_eq!(kind(co::create_dir_all(at("a/file"))), ErrorKind::AlreadyExists);
        assert_eq!(names(&at("a")), ["b", "file"]);
        assert_eq!((names(&at("a/b")), names(&at("a/b/c")).len()), (vec!["c".to_string()], 0));
        assert_eq!(kind(co::read_dir(at("a/file"))), ErrorKind::NotADirectory);
        assert_eq!(kind(co::read_dir(at("none"))), ErrorKind::NotFound);
        assert_eq!(kind(File::open(at("a"))), ErrorKind::IsADirectory);
        assert_eq!(kind(co::remove_file(at("a/b"))), ErrorKind::IsADirectory);
        let error = co::remove_dir(at("a/b")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DirectoryNotEmpty);
        let path = at("a/b").display().to_string();
        assert!(error.to_string().contains(&format!("cannot remove the directory {path}: ")), "{error}");
        assert_eq!(error.os_code(), Some(libc::ENOTEMPTY));
        co::rename(at("a/b"), at("d")).unwrap();
        assert_eq!((names(&folder.0), names(&at("d"))), (vec!["a".into(), "d".into()], vec!["c".into()]));
        assert_eq!(kind(co::rename(at("a/file"), at("d"))), ErrorKind::IsADirectory);
        assert_eq!(kind(co::rename(at("d"), at("d/c/e"))), ErrorKind::InvalidInput);
        assert_eq!(kind(co::rename(at("d"), at("a"))), ErrorKind::DirectoryNotEmpty);
        co::remove_dir(at("d/c")).unwrap();
        assert_eq!(kind(co::remove_dir(at("d/c"))), ErrorKind::NotFound);
        co::remove_dir_all(at("a")).unwrap();
        assert_eq!(kind(co::remove_dir_all(at("a"))), ErrorKind::NotFound);
        assert_eq!(names(&folder.0), ["d"]);
    });
}

#[test]
fn whole_files_are_read_written_copied_and_linked() {
    // E19: contents, links and existence behave as std's; errors name operation and path
    everywhere(|place, _| {
        let folder = Folder::at(place);
        let at = |name: &str| folder.0.join(name);
        let text = "text ".repeat(2000);
        co::write(at("a"), &text).unwrap();
        assert_eq!(co::read(at("a")).unwrap(), text.as_bytes());
        assert_eq!(co::copy(at("a"), at("b")).unwrap(), text.len() as u64);
        co::write(at("a"), [0xff, 0xfe]).unwrap();
        assert_eq!((co::read(at("a")).unwrap(), co::read_to_string(at("b")).unwrap()), (vec![0xff, 0xfe], text));
        let error = co::read_to_string(at("a")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert!(error.to_string().starts_with(&format!("cannot read {}: ", at("a").display())), "{error}");

        co::hard_link(at("a"), at("c")).unwrap();
        File::options().write(true).open(at("c")).unwrap().write_at(b"!", 0).unwrap();
        co::remove_file(at("a")).unwrap();
        assert_eq!(co::read(at("c")).unwrap(), b"!\xfe");
        assert_eq!(kind(co::hard_link(at("b"), at("c"))), ErrorKind::AlreadyExists);
        assert_eq!(["a", "b", ""].map(|name| co::try_exists(at(name)).unwrap()), [false, true, true]);

        for error in [co::read(at("a")).unwrap_err(), co::copy(at("a"), at("d")).unwrap_err()] {
            assert_eq!((error.kind(), error.os_code()), (ErrorKind::NotFound, Some(libc::ENOENT)));
            assert!(error.to_string().contains(&at("a").display().to_string()), "{error}");
        }
        assert_eq!(kind(co::canonicalize(at("a"))), ErrorKind::NotFound);
        let resolved = co::canonicalize(folder.0.join("./b")).unwrap();
        if sim_of(place).is_some() {
            assert_eq!(resolved, at("b"));
            let errors = [co::metadata(at("b")), co::symlink_metadata(at("b"))].map(kind);
            assert_eq!(errors, [ErrorKind::Unsupported; 2]);
        } else {
            assert_eq!(resolved, fs::canonicalize(at("b")).unwrap());
            assert_eq!(co::metadata(at("b")).unwrap().ino(), fs::metadata(at("b")).unwrap().ino());
        }
    });
}

#[test]
fn links_are_distinguished_from_their_targets() {
    // E19: metadata follows a link, symlink_metadata and the entries of a directory do not
    on_real_files(|place, _| {
        let folder = Folder::at(place);
        let [file, link] = ["file", "link"].map(|name| folder.0.join(name));
        co::write(&file, "12345").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        assert_eq!(co::metadata(&link).unwrap().len(), 5);
        assert!(co::symlink_metadata(&link).unwrap().is_symlink());
        for entry in co::read_dir(&folder.0).unwrap().map(Result::unwrap) {
            let is_link = entry.file_name() == "link";
            assert_eq!(
                (entry.file_type().unwrap().is_symlink(), entry.file_type().unwrap().is_file()),
                (is_link, !is_link)
            );
            assert_eq!(entry.metadata().unwrap().is_symlink(), is_link);
        }
    });
}

#[test]
fn replaced_file_keeps_its_permissions_and_leaves_nothing_behind() {
    // E20: the contents are replaced, the mode is kept, no temporary file remains, whether the
    // replacement succeeds or fails, and the error names path and step
    everywhere(|place, _| {
        let folder = Folder::at(place);
        let at = |name: &str| folder.0.join(name);
        co::replace_file(at("file"), "first").unwrap();
        if sim_of(place).is_none() {
            fs::set_permissions(at("file"), fs::Permissions::from_mode(0o604)).unwrap();
        }
        co::replace_file(at("file"), "second".repeat(5000)).unwrap();
        assert_eq!(co::read_to_string(at("file")).unwrap(), "second".repeat(5000));
        if sim_of(place).is_none() {
            assert_eq!(fs::metadata(at("file")).unwrap().permissions().mode() & 0o7777, 0o604);
        }
        co::create_dir_all(at("folder/full")).unwrap();
        let error = co::replace_file(at("folder"), "third").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::IsADirectory);
        let text = error.to_string();
        assert!(text.starts_with(&format!("cannot replace {}: cannot rename ", at("folder").display())), "{text}");
        assert_eq!(kind(co::replace_file(at(".."), "third")), ErrorKind::InvalidInput);
        assert_eq!(names(&folder.0), ["file", "folder"]);
    });
}

#[test]
fn replacement_is_no_more_accessible_than_the_original() {
    // E20: a file that is written in its place has the permissions before it has the contents, and
    // does not run as another owner
    on_each_backend(|| {
        let folder = Folder::at(Path::new(&std::env::temp_dir()));
        let path = folder.0.join("private");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4700)).unwrap();
        let (write_began, watcher) = (Rc::new(Cell::new(false)), folder.0.clone());
        let contents = vec![7; 1 << 22];
        let replaced = spawn({
            let path = path.clone();
            move || co::replace_file(path, contents)
        });
        while !replaced.is_finished() {
            for entry in fs::read_dir(&watcher).unwrap() {
                let Ok(found) = entry.unwrap().metadata() else { continue };
                if found.len() > 3 {
                    write_began.set(true);
                    assert_eq!(found.permissions().mode() & 0o7077, 0, "{:o}", found.permissions().mode());
                }
            }
            yield_now();
        }
        replaced.join().unwrap().unwrap();
        assert!(write_began.get());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
    });
}

#[test]
fn replacement_in_the_current_directory_works() {
    // E20: a path without a directory is in the current one
    let name = format!("coralio-replace-{}", std::process::id());
    on_each_backend(|| {
        co::replace_file(&name, "here").unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"here");
        fs::remove_file(&name).unwrap();
    });
    assert!(!disk().join(&name).exists());
}
