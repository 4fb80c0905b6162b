import com.hivemq.embedded.EmbeddedExtension;
import com.hivemq.embedded.EmbeddedHiveMQ;
import com.hivemq.extension.sdk.api.ExtensionMain;
import com.hivemq.extension.sdk.api.auth.SimpleAuthenticator;
import com.hivemq.extension.sdk.api.auth.parameter.TopicPermission;
import com.hivemq.extension.sdk.api.packets.connect.ConnackReasonCode;
import com.hivemq.extension.sdk.api.parameter.ExtensionStartInput;
import com.hivemq.extension.sdk.api.parameter.ExtensionStartOutput;
import com.hivemq.extension.sdk.api.parameter.ExtensionStopInput;
import com.hivemq.extension.sdk.api.parameter.ExtensionStopOutput;
import com.hivemq.extension.sdk.api.services.Services;
import com.hivemq.extension.sdk.api.services.builder.Builders;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;

/**
 * HiveMQ CE, whose package has no users of its own. Arguments: the folder of config.xml, the password that all users
 * have, the name of a limited one, and the topic that it must not publish on.
 */
public class Broker {
  public static void main(String[] arguments) throws Exception {
    var folder = Path.of(arguments[0]);
    var extension = EmbeddedExtension.builder().withId("users").withName("users").withVersion("1")
        .withExtensionMain(new Users(arguments[1], arguments[2], arguments[3])).build();
    var broker = EmbeddedHiveMQ.builder().withConfigurationFolder(folder)
        .withDataFolder(Files.createDirectories(folder.resolve("data")))
        .withExtensionsFolder(Files.createDirectories(folder.resolve("extensions")))
        .withEmbeddedExtension(extension).withoutLoggingBootstrap().build();
    broker.start().join();
    Thread.currentThread().join();
  }

  record Users(String password, String limited, String forbidden) implements ExtensionMain {
    public void extensionStart(ExtensionStartInput input, ExtensionStartOutput output) {
      Services.securityRegistry().setAuthenticatorProvider(_input -> (SimpleAuthenticator) (in, out) -> {
        var connect = in.getConnectPacket();
        var given = connect.getPassword().map(bytes -> StandardCharsets.UTF_8.decode(bytes).toString()).orElse("");
        if (!given.equals(password)) {
          out.failAuthentication(ConnackReasonCode.BAD_USER_NAME_OR_PASSWORD, "wrong password");
          return;
        }
        if (connect.getUserName().orElse("").equals(limited)) {
          out.getDefaultPermissions().add(Builders.topicPermission().topicFilter(forbidden)
              .type(TopicPermission.PermissionType.DENY).activity(TopicPermission.MqttActivity.PUBLISH).build());
        }
        out.getDefaultPermissions().add(Builders.topicPermission().topicFilter("#").build());
        out.authenticateSuccessfully();
      });
    }

    public void extensionStop(ExtensionStopInput input, ExtensionStopOutput output) {}
  }
}
