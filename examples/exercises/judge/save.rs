//! Exercise 9: a file that is replaced.

use std::io;

use coralio::File;
use coralio::fs::{rename, sync_dir};
use coralio::simulate::{Faults, Sim, Simulation};

use super::{Judged, judge_on, say};

/// Replaces the contents of the file `settings` in the folder `dir`. After a crash at any moment
/// the file has the old contents or the new; and the new once this has returned.
pub type Save = fn(&[u8]) -> io::Result<()>;

const OLD: &[u8] = b"colour=blue;size=10;";
const NEW: &[u8] = b"colour=red; size=12;";

/// Saves the file. The power fails during the call or after it.
pub fn is_correct(save: Save) -> Judged {
    let machine = Simulation::new().faults(Faults::none()).sector_size(8);
    judge_on(&machine, |sim: &Sim| {
        prepare().expect("the machine has no faults");
        say("the old contents are durable; calls `save`");
        let saved = sim.crash_during(|| {
            let saved = save(NEW);
            say(if saved.is_ok() { "`save` has returned Ok" } else { "`save` has returned an error" });
            saved
        });
        let saved = saved.is_some_and(|result| result.is_ok());
        say("power was lost, and is back");
        let found = sim.contents("dir/settings");
        let text = found.as_deref().map_or("no file".into(), |bytes| format!("{:?}", String::from_utf8_lossy(bytes)));
        assert!(
            found.as_deref() == Some(OLD) || found.as_deref() == Some(NEW),
            "after the crash the contents are neither the old nor the new: {text}."
        );
        assert!(!saved || found.as_deref() == Some(NEW), "`save` had returned, and the contents are the old ones.");
    })
}

/// Creates the file, durably.
fn prepare() -> io::Result<()> {
    let file = File::options().write(true).create(true).truncate(true).open("dir/first")?;
    file.write_at(OLD, 0)?;
    file.sync_all()?;
    rename("dir/first", "dir/settings")?;
    sync_dir("dir")
}
