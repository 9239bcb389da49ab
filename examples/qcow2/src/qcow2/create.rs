//! Creates images: header, refcount table, refcount blocks and L1 table, in this order in the file.
//! The header is written last, so an interrupted creation leaves no valid image.

use std::io;
use std::path::Path;

use coralio::fs::sync_dir;
use coralio::{AlignedBuf, File};

use super::Qcow2;
use super::extensions::backing_format;
use super::geometry::Geometry;
use super::header::{Header, MAGIC, MAX_NAME, REFTABLE_FIELDS, V2_LEN, V3_LEN};
use super::refcount::set;
use super::top::PAGE;
use crate::error::{about, invalid};
use crate::open::Format;

/// The properties of a new image.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// The size of the disk in bytes.
    pub size: u64,
    /// A power of two from 512 to 2 MiB; the default is 64 KiB.
    pub cluster_size: u64,
    /// 2 or 3. Version 2 has no zero clusters, and its `refcount_bits` must be 16.
    pub version: u32,
    /// A power of two from 1 to 64; the default is 16.
    pub refcount_bits: u32,
    /// The backing file: its path, relative to the directory of the image, and its format. Its
    /// existence is not checked.
    pub backing: Option<(String, Format)>,
}

impl CreateOptions {
    /// Returns options for version 3 with 64 KiB clusters and no backing file.
    pub fn new(size: u64) -> CreateOptions {
        CreateOptions { size, cluster_size: 65536, version: 3, refcount_bits: 16, backing: None }
    }

    fn check(&self) -> io::Result<Geometry> {
        if !self.cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&self.cluster_size) {
            return Err(invalid(format!(
                "invalid cluster size {}: must be a power of two, 512 to 2097152",
                self.cluster_size
            )));
        }
        if !self.refcount_bits.is_power_of_two() || self.refcount_bits > 64 {
            return Err(invalid(format!(
                "invalid refcount width of {} bits: must be a power of two up to 64",
                self.refcount_bits
            )));
        }
        if !(2..=3).contains(&self.version) || self.version == 2 && self.refcount_bits != 16 {
            return Err(invalid(format!(
                "invalid version {} with refcounts of {} bits: must be 3, or 2 with 16 bits",
                self.version, self.refcount_bits
            )));
        }
        if self.backing.as_ref().is_some_and(|(name, _)| name.is_empty() || name.len() > self.most_name()) {
            return Err(invalid(format!("invalid backing file name: must be 1 to {} bytes", self.most_name())));
        }
        let (cluster, order) = (self.cluster_size.trailing_zeros(), self.refcount_bits.trailing_zeros());
        Ok(Geometry::new(self.version, cluster, order, self.size))
    }

    /// Returns the maximum length of the backing file's name, which follows the header and its
    /// extensions in the first cluster.
    fn most_name(&self) -> usize {
        (self.cluster_size as usize - V3_LEN - 32).min(MAX_NAME as usize)
    }

    fn first_cluster(&self, geometry: &Geometry, layout: &Layout) -> Vec<u8> {
        let len = if self.version == 2 { V2_LEN } else { V3_LEN };
        let (name, mut extensions) = match &self.backing {
            Some((name, format)) => (name.as_str(), backing_format(format.name())),
            None => ("", Vec::new()),
        };
        extensions.extend([0; 8]); // end of the extensions
        let name_at = len + extensions.len();

        let mut header = vec![0; 1 << geometry.cluster_bits];
        header[..4].copy_from_slice(&MAGIC);
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(4, &self.version.to_be_bytes());
        put(8, &(if name.is_empty() { 0 } else { name_at as u64 }).to_be_bytes());
        put(16, &(name.len() as u32).to_be_bytes());
        put(20, &geometry.cluster_bits.to_be_bytes());
        put(24, &geometry.size.to_be_bytes());
        put(36, &(layout.l1_entries as u32).to_be_bytes());
        put(40, &(layout.l1 << geometry.cluster_bits).to_be_bytes());
        put(REFTABLE_FIELDS as usize, &geometry.cluster_size().to_be_bytes());
        put(REFTABLE_FIELDS as usize + 8, &(layout.reftable_clusters as u32).to_be_bytes());
        if self.version == 3 {
            put(96, &geometry.refcount_order.to_be_bytes());
            put(100, &(V3_LEN as u32).to_be_bytes());
        }
        put(len, &extensions);
        put(name_at, name.as_bytes());
        header
    }
}

/// The layout of a new image, in clusters except for `l1_entries`.
struct Layout {
    reftable_clusters: u64,
    blocks: u64,
    l1: u64,
    l1_entries: u64,
    all: u64,
}

impl Layout {
    fn new(geometry: &Geometry) -> Layout {
        let l1_entries = geometry.l1_entries_for(geometry.size).max(1);
        let clusters = |entries: u64| (entries * 8).div_ceil(geometry.cluster_size());
        let (mut blocks, mut reftable_clusters) = (1, 1);
        loop {
            let all = 1 + reftable_clusters + blocks + clusters(l1_entries);
            let needed = all.div_ceil(geometry.per_block());
            if needed <= blocks && clusters(blocks) <= reftable_clusters {
                return Layout { reftable_clusters, blocks, l1: 1 + reftable_clusters + blocks, l1_entries, all };
            }
            blocks = blocks.max(needed);
            reftable_clusters = clusters(blocks);
        }
    }
}

impl Qcow2 {
    /// Creates an image that reads as zeroes, or as its backing image. The file must not exist.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for invalid options; `AlreadyExists`; the kernel's errors, which may leave an
    /// incomplete file.
    ///
    /// # Panics
    ///
    /// Outside a context.
    ///
    /// # Control
    ///
    /// May yield.
    pub fn create(path: impl AsRef<Path>, options: &CreateOptions) -> io::Result<()> {
        let path = path.as_ref();
        let name = format_args!("cannot create {}", path.display());
        // Check the options before the file is created.
        let plan = about(name, Plan::new(options))?;
        // Errors of `open` contain the path.
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        about(name, plan.write_named(&file, path))
    }

    /// Like [`create`](Qcow2::create), in an existing empty file that is open for writing.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for invalid options or if the file is not empty; the kernel's errors.
    ///
    /// # Control
    ///
    /// May yield.
    pub fn create_in(file: &File, options: &CreateOptions) -> io::Result<()> {
        if !file.is_empty()? {
            return Err(invalid("cannot create an image: the file is not empty; use an empty file"));
        }
        Plan::new(options)?.write(file)
    }
}

/// A checked plan for a new image.
struct Plan {
    geometry: Geometry,
    layout: Layout,
    first_cluster: Vec<u8>,
}

impl Plan {
    fn new(options: &CreateOptions) -> io::Result<Plan> {
        let geometry = options.check()?;
        let layout = Layout::new(&geometry);
        let first_cluster = options.first_cluster(&geometry, &layout);
        // The parser also checks the size.
        Header::parse(&first_cluster).map_err(invalid)?;
        Ok(Plan { geometry, layout, first_cluster })
    }

    /// Writes the image and syncs the directory entry.
    fn write_named(&self, file: &File, path: &Path) -> io::Result<()> {
        self.write(file)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        sync_dir(folder.unwrap_or(Path::new(".")))
    }

    fn write(&self, file: &File) -> io::Result<()> {
        let Plan { geometry, layout, first_cluster } = self;
        let (bits, cluster) = (geometry.cluster_bits, geometry.cluster_size());
        file.set_len(layout.all << bits)?;
        let mut blocks = AlignedBuf::new((layout.blocks << bits) as usize, PAGE);
        (0..layout.all).for_each(|index| set(&mut blocks, index as usize, geometry.refcount_order, 1));
        let first_block = (1 + layout.reftable_clusters) << bits;
        file.write_at(&blocks, first_block)?;
        let mut reftable = AlignedBuf::new((layout.reftable_clusters << bits) as usize, PAGE);
        for block in 0..layout.blocks {
            let entry = first_block + (block << bits);
            reftable[block as usize * 8..][..8].copy_from_slice(&entry.to_be_bytes());
        }
        file.write_at(&reftable, cluster)?;
        file.sync_all()?;
        let mut header = AlignedBuf::new(first_cluster.len(), PAGE);
        header.copy_from_slice(first_cluster);
        file.write_at(&header, 0)?;
        file.sync_all()
    }
}
