//! The weight files: whole, of the right kind, and fit for each other and for the clone.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::Metadata;

use super::{Check, Question, gigabytes};
use crate::adapter;
use crate::tuner::MusubiTuner;
use crate::weights::kind::{self, Role};
use crate::weights::{self, Weights};

/// A weight file of a run.
#[derive(Clone, Debug)]
pub struct WeightFile {
    pub role: Role,
    pub path: PathBuf,
}

/// Looks at a file; with the header, where it has one.
#[must_use]
pub fn look(file: &WeightFile) -> (Check, Option<Metadata>) {
    let WeightFile { role, path } = file;
    let question = Question::new(format!("weights {}", role.field()), role.expected());
    let download = format!(
        "download it, or let Models(..., {}=...) name the file that is there",
        role.field()
    );
    if !path.exists() {
        return (
            question.error(format!("{} does not exist", path.display()), download),
            None,
        );
    }
    if path.is_dir() {
        let mend =
            "name the file in it; of a model in several, the first (…-00001-of-0000N.safetensors)";
        return (
            question.error(format!("{} is a folder", path.display()), mend),
            None,
        );
    }
    if let Some(missing) = missing_part(path) {
        let found = format!("{} has no {missing} beside it", path.display());
        return (
            question.error(found, "download all files of the model into one folder"),
            None,
        );
    }
    let metadata = match weights::inspect(path, weights::DOWNLOAD_AGAIN) {
        Ok(Weights::Whole(metadata)) => metadata,
        Ok(Weights::Unrecognised(why)) => {
            let found = format!("{} is no safetensors file: {why}", path.display());
            return (question.error(found, download), None);
        }
        Err(error) => return (question.error(error.to_string(), download), None),
    };
    let size = fs::metadata(path).map_or(0, |file| file.len());
    let check = match kind::recognise(&metadata) {
        Some(kind) if kind.role == Some(*role) => {
            question.ok(format!("{}, {}", kind.name, gigabytes(size)))
        }
        Some(kind) => question.error(
            format!("{} is {} ({})", path.display(), kind.name, gigabytes(size)),
            download,
        ),
        None => question.warning(
            format!(
                "{}: the model that its {} tensors are of is not known",
                path.display(),
                metadata.offset_keys().len()
            ),
            "see that it is the right file",
        ),
    };
    (check, Some(metadata))
}

/// The first file that a model in several, `…-00001-of-00003.safetensors`, lacks.
fn missing_part(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let (rest, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let parts: u32 = count.parse().ok()?;
    let width = number.len();
    number.parse::<u32>().ok()?;
    (1..=parts.min(1000))
        .map(|part| format!("{stem}-{part:0width$}-of-{count}.safetensors"))
        .find(|part| !path.with_file_name(part).exists())
}

/// Whether the adapter does its work: its naming, and how it goes with the transformer.
#[must_use]
pub fn adapter(
    dit: &Path,
    of_dit: Option<&Metadata>,
    adapter: Option<(&Path, &Metadata)>,
    clone: &MusubiTuner,
) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Some((path, metadata)) = adapter {
        checks.push(naming(path, metadata, clone));
    }
    let question = Question::new(
        "DiT and adapter",
        "De-Turbo without an adapter, or Turbo with its training adapter (Musubi Tuner's docs/zimage.md)",
    );
    let title = of_dit.and_then(|metadata| metadata.metadata().as_ref()?.get("modelspec.title"));
    let name = dit.file_name().unwrap_or_default().to_string_lossy();
    let names = format!("{name} {}", title.map_or("", String::as_str));
    let names = names.to_lowercase().replace(['-', ' '], "_");
    let is_de_turbo = names.contains("de_turbo") || names.contains("deturbo");
    checks.push(match (is_de_turbo, adapter) {
        (true, Some((path, _))) => question.warning(
            format!(
                "{name}, a De-Turbo, and the adapter {} on top of it, as the defaults have it",
                path.file_name().unwrap_or_default().to_string_lossy()
            ),
            "to train as the docs have it, either pass TrainingOptions(base_weights=None), or let Models(..., DiT=...) \
             name the Turbo DiT",
        ),
        (false, None) if names.contains("turbo") => question.warning(
            format!("{name}, a Turbo, without an adapter: what makes it fast is trained away"),
            "leave TrainingOptions(base_weights=...) at its default, and let Models(..., base_weights=...) name the \
             training adapter",
        ),
        (_, Some(_)) => question.ok(format!("{name} with an adapter")),
        (_, None) => question.ok(format!("{name} without an adapter")),
    });
    checks
}

fn naming(path: &Path, metadata: &Metadata, clone: &MusubiTuner) -> Check {
    let question = Question::new("adapter naming", "a naming that this clone merges");
    if kind::is_lora_of_comfyui(metadata) {
        return question.error(
            format!(
                "{} is in ComfyUI's form, of which Musubi Tuner merges but a part, without an error",
                path.display()
            ),
            "use the adapter as it was before the conversion",
        );
    }
    if !adapter::is_in_diffusers_naming(metadata) {
        return question.ok("Musubi Tuner's own");
    }
    question.ok(if clone.ignores_diffusers_base_weights() {
        "diffusers', of which this clone merges nothing: it will be renamed into the training folder"
    } else {
        "diffusers', which this clone renames itself"
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_model_in_several_files_needs_them_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = |part: u32| {
            folder
                .path()
                .join(format!("dit-0000{part}-of-00003.safetensors"))
        };
        for part in [1, 3] {
            fs::write(path(part), "").unwrap();
        }
        assert_eq!(
            missing_part(&path(1)).as_deref(),
            Some("dit-00002-of-00003.safetensors")
        );
        fs::write(path(2), "").unwrap();
        assert_eq!(missing_part(&path(1)), None);
        for other in [
            "a.safetensors",
            "a-of-b.safetensors",
            "one-of-2.safetensors",
            "x",
        ] {
            assert_eq!(missing_part(&folder.path().join(other)), None, "{other}");
        }
    }

    #[test]
    fn a_de_turbo_with_an_adapter_and_a_turbo_without_one_are_warned_of() {
        let none: Metadata = serde_json::from_str("{}").unwrap();
        let titled: Metadata =
            serde_json::from_str(r#"{"__metadata__":{"modelspec.title":"Z-Image De-Turbo"}}"#)
                .unwrap();
        let clone = MusubiTuner::new("/nowhere".into());
        let adapter_file = Path::new("adapter.safetensors");
        for (dit, metadata, adapter, expected) in [
            (
                "z_image_de_turbo_v1_bf16.safetensors",
                &none,
                true,
                Verdict::Warning,
            ),
            (
                "Z-Image-De-Turbo.safetensors",
                &none,
                true,
                Verdict::Warning,
            ),
            ("model.safetensors", &titled, true, Verdict::Warning),
            (
                "z_image_de_turbo_v1_bf16.safetensors",
                &none,
                false,
                Verdict::Ok,
            ),
            ("z_image_turbo_bf16.safetensors", &none, true, Verdict::Ok),
            (
                "z_image_turbo_bf16.safetensors",
                &none,
                false,
                Verdict::Warning,
            ),
            ("z_image_bf16.safetensors", &none, false, Verdict::Ok),
        ] {
            let adapter = adapter.then_some((adapter_file, &none));
            let checks = super::adapter(Path::new(dit), Some(metadata), adapter, &clone);
            assert_eq!(checks.last().unwrap().verdict, expected, "{checks:?}");
        }
    }
}
