#include "parallel/network_interface.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <set>

namespace quire {
namespace {

using Interfaces = std::unique_ptr<ifaddrs, void (*)(ifaddrs*)>;

Result<Interfaces> ListInterfaces() {
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return Unavailable(std::string("this host's network interfaces can't be listed: ") + std::strerror(errno));
  return Interfaces(list, freeifaddrs);
}

std::vector<std::string> SplitNames(const std::string& names) {
  std::vector<std::string> list;
  for (size_t begin = 0; begin <= names.size();) {
    const size_t comma = std::min(names.find(',', begin), names.size());
    if (comma > begin) list.push_back(names.substr(begin, comma - begin));
    begin = comma + 1;
  }
  return list;
}

Status CheckNames(const std::vector<std::string>& names, const ifaddrs* list) {
  std::set<std::string> there;
  for (const ifaddrs* i = list; i != nullptr; i = i->ifa_next) there.insert(i->ifa_name);
  for (const std::string& name : names) {
    if (there.count(name) > 0) continue;
    std::string all;
    for (const std::string& other : there) all += (all.empty() ? "" : ", ") + other;
    return InvalidArgument("this host has no network interface \"" + name + "\"; it has " + all);
  }
  return OkStatus();
}

}  // namespace

Status UseNetworkInterface(const std::string& interface) {
  const std::vector<std::string> names = SplitNames(interface);
  if (names.empty()) return OkStatus();
  ASSIGN_OR_RETURN(const Interfaces list, ListInterfaces());
  RETURN_IF_ERROR(CheckNames(names, list.get()));
  for (const char* variable : {"OMPI_MCA_btl_tcp_if_include", "OMPI_MCA_oob_tcp_if_include", "NCCL_SOCKET_IFNAME"}) {
    setenv(variable, interface.c_str(), /*overwrite=*/0);
  }
  return OkStatus();
}

std::string internal::HostAddress::ToString() const {
  char text[INET6_ADDRSTRLEN] = "?";
  inet_ntop(family, bytes, text, sizeof(text));
  return text;
}

Result<std::vector<internal::HostAddress>> internal::InterfaceAddresses(const std::string& interface) {
  const std::vector<std::string> names = SplitNames(interface);
  ASSIGN_OR_RETURN(const Interfaces list, ListInterfaces());
  RETURN_IF_ERROR(CheckNames(names, list.get()));
  std::vector<HostAddress> v4, v6;
  for (const ifaddrs* i = list.get(); i != nullptr; i = i->ifa_next) {
    if (i->ifa_addr == nullptr || (i->ifa_flags & IFF_UP) == 0) continue;
    const bool named = std::find(names.begin(), names.end(), i->ifa_name) != names.end();
    if (names.empty() ? (i->ifa_flags & IFF_LOOPBACK) != 0 : !named) continue;
    HostAddress address;
    address.family = i->ifa_addr->sa_family;
    if (address.family == AF_INET) {
      std::memcpy(address.bytes, &reinterpret_cast<const sockaddr_in*>(i->ifa_addr)->sin_addr, 4);
      v4.push_back(address);
    } else if (address.family == AF_INET6) {
      const in6_addr& v = reinterpret_cast<const sockaddr_in6*>(i->ifa_addr)->sin6_addr;
      if (IN6_IS_ADDR_LINKLOCAL(&v)) continue;
      std::memcpy(address.bytes, &v, 16);
      v6.push_back(address);
    }
  }
  v4.insert(v4.end(), v6.begin(), v6.end());
  if (v4.empty()) {
    return Unavailable(names.empty() ? std::string("this host has no network interface that is up and has an address")
                                     : "network interface \"" + interface + "\" is down or has no address");
  }
  return v4;
}

}  // namespace quire
