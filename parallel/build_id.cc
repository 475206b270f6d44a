#include "parallel/build_id.h"

#include <elf.h>
#include <link.h>

#include <cstring>
#include <string_view>

#include "parallel/hash.h"

namespace quire {
namespace {

bool Holds(const dl_phdr_info& object, uintptr_t address) {
  for (int i = 0; i < object.dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = object.dlpi_phdr[i];
    const uintptr_t begin = object.dlpi_addr + segment.p_vaddr;
    if (segment.p_type == PT_LOAD && address >= begin && address < begin + segment.p_memsz) return true;
  }
  return false;
}

std::string_view Bytes(const dl_phdr_info& object, const ElfW(Phdr)& segment) {
  return {reinterpret_cast<const char*>(object.dlpi_addr + segment.p_vaddr), segment.p_filesz};
}

// The descriptor of the GNU build-id note, or empty.
std::string_view BuildIdNote(const dl_phdr_info& object) {
  const auto padded = [](size_t n) { return (n + 3) / 4 * 4; };
  for (int i = 0; i < object.dlpi_phnum; ++i) {
    if (object.dlpi_phdr[i].p_type != PT_NOTE) continue;
    std::string_view notes = Bytes(object, object.dlpi_phdr[i]);
    while (notes.size() >= sizeof(ElfW(Nhdr))) {
      ElfW(Nhdr) note;
      std::memcpy(&note, notes.data(), sizeof(note));
      const size_t name = sizeof(note), data = name + padded(note.n_namesz), end = data + padded(note.n_descsz);
      if (end > notes.size()) break;
      if (note.n_type == NT_GNU_BUILD_ID && notes.substr(name, note.n_namesz) == std::string_view("GNU", 4)) {
        return notes.substr(data, note.n_descsz);
      }
      notes.remove_prefix(end);
    }
  }
  return {};
}

int Visit(dl_phdr_info* object, size_t, void* result) {
  if (!Holds(*object, reinterpret_cast<uintptr_t>(&BuildHash))) return 0;
  auto& hash = *static_cast<uint64_t*>(result);
  if (const std::string_view id = BuildIdNote(*object); !id.empty()) {
    hash = HashBytes(id);
    return 1;
  }
  for (int i = 0; i < object->dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = object->dlpi_phdr[i];
    // Segments that are never written need no relocation: their bytes are the file's.
    if (segment.p_type == PT_LOAD && (segment.p_flags & PF_W) == 0) hash = HashBytes(Bytes(*object, segment), hash);
  }
  return 1;
}

}  // namespace

uint64_t BuildHash() {
  uint64_t hash = 1;
  dl_iterate_phdr(Visit, &hash);
  return hash;
}

}  // namespace quire
